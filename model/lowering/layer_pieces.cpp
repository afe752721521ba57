#include "model/lowering/layer_pieces.h"

namespace meshwright {
namespace {

View stream(Forward& f, Frame frame, std::string_view name) {
  return f.at(frame, name, f.own_rows(), f.width(), f.compute());
}

Forward write_layer(const StepContext& context, const Layer& layer, const Block& block) {
  Forward f("layer", context, &block);
  layer.forward(f, stream(f, Frame::kX, "x"), stream(f, Frame::kXOut, "y"));
  return f;
}

Piece write_embedding(const StepContext& context, const ModelSpec& model, const Block& block) {
  Forward f("embedding", context, &block);
  const View tokens = f.at(Frame::kTokens, "inputs", f.own_rows(), 1, DType::kI32);
  model.embedding.forward(f, tokens, stream(f, Frame::kXOut, "y"));
  return f.take();
}

}  // namespace

Differentiated layer_pieces(const StepContext& context, const Layer& layer, const Block& block, Recompute recompute,
                            bool accumulate, const std::string& name) {
  Forward f = write_layer(context, layer, block);
  const auto parts = f.take_parts();
  return differentiate(f.take(), context.set.mesh, {context.set.state, accumulate, &block}, {recompute, &parts}, name);
}

Piece layer_forward(const StepContext& context, const Layer& layer, const Block& block, const std::string& name) {
  return forward_alone(write_layer(context, layer, block).take(), name + ".forward");
}

Differentiated embedding_pieces(const StepContext& context, const ModelSpec& model, const Block& block) {
  return differentiate(write_embedding(context, model, block), context.set.mesh, {context.set.state}, {}, "embedding");
}

Piece embedding_forward(const StepContext& context, const ModelSpec& model, const Block& block) {
  return forward_alone(write_embedding(context, model, block), "embedding.forward");
}

Piece head_piece(const StepContext& context, const ModelSpec& model, const Block& block) {
  Forward f("head", context, &block);
  model.head.forward(f, model.vocab(), stream(f, Frame::kX, "x"));
  if (!context.gradients) return forward_alone(f.take(), "head");
  return differentiate_at_once(f.take(), context.set.mesh, {context.set.state});
}

}  // namespace meshwright
