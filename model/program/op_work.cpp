#include "model/program/op_work.h"

#include <algorithm>
#include <map>
#include <utility>

namespace meshwright {
namespace {

// Calls f(rows, cols) for every row block of causal attention: it sees the columns before its own end, from the first that
// its first row sees.
template <class F>
void for_each_block(const AttentionShape& shape, F&& f) {
  for (std::int64_t begin = 0; begin < shape.tokens; begin += shape.block) {
    const std::int64_t rows = std::min(shape.block, shape.tokens - begin);
    f(rows, begin + rows - shape.first_column(begin));
  }
}

// Elements of all score blocks of one (sequence, head).
std::int64_t score_elements(const AttentionShape& shape) {
  std::int64_t sum = 0;
  for_each_block(shape, [&](std::int64_t rows, std::int64_t cols) { sum += rows * cols; });
  return sum;
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return b == 0 ? 0 : (a + b - 1) / b; }

struct WorkOf {
  const Piece& piece;
  std::int64_t routed_rows;

  DType dtype(const View& view) const { return piece.tensors[view.tensor].dtype; }
  Bytes bytes(const View& view) const {
    if (!view) return {};
    return {view.rows * view.cols * size_of(dtype(view))};
  }

  // Bytes of every operand, read or written once; an update does both. `skip`: an operand that is not counted. Of row buffers
  // of experts only the routed rows are touched.
  template <class O>
  Work streamed(const O& op, std::string_view skip = {}) const {
    Work work;
    Bytes largest{-1};
    O::fields(op, [&](std::string_view field, const auto&... rest) {
      if constexpr (kIsOperand<decltype(rest)...>) {
        [&](const View& view, Access access, ExpertRows of_experts = {false}) {
          if (!view || field == skip) return;
          if (bytes(view) > largest) {
            largest = bytes(view);
            work.dtype = dtype(view);
          }
          Bytes touched = bytes(view);
          if (of_experts.value && routed_rows >= 0) touched = routed_rows * Bytes{view.cols * size_of(dtype(view))};
          work.bytes += (access == Access::kUpdate ? 2 : 1) * touched;
        }(rest...);
      }
    });
    return work;
  }

  Work operator()(const Gemm& op) const {
    Work work = streamed(op);
    work.m = op.m(), work.n = op.n(), work.k = op.k();
    work.flops = {2 * work.m * work.n * work.k};
    work.dtype = dtype(op.a);
    return work;
  }

  Work operator()(const GroupedGemm& op) const {
    const std::int64_t rows = routed_rows < 0 ? op.a.rows : routed_rows;
    const std::int64_t rows_per_expert = divide_up(rows, op.experts);
    Work work = streamed(op);
    work.m = op.ta ? op.other() : rows_per_expert;
    work.n = op.n();
    work.k = op.ta ? rows_per_expert : op.other();
    work.batch = op.experts;
    work.flops = {2 * rows * op.n() * op.other()};
    work.dtype = dtype(op.a);
    return work;
  }

  // The product of the routed rows; it is written, and read once by the sum.
  Work operator()(const ExpertCombine& op) const {
    const std::int64_t rows = routed_rows < 0 ? op.shape.buffer_rows() : routed_rows;
    Work work = streamed(op);
    work.bytes += rows * Bytes{op.product.cols * size_of(dtype(op.product))};
    work.m = divide_up(rows, op.shape.experts), work.n = op.out.cols, work.k = op.a.cols, work.batch = op.shape.experts;
    work.flops = {2 * rows * work.n * work.k};
    work.dtype = dtype(op.a);
    return work;
  }

  // The score blocks stay in cache: scratch is not counted. m x n: the scores of an average block.
  Work attention(Work work, const AttentionShape& shape, Flops flops) const {
    work.m = std::min(shape.block, shape.tokens);
    work.n = divide_up(score_elements(shape), std::max<std::int64_t>(shape.tokens, 1));
    work.k = shape.head_dim + shape.rope_width;
    work.batch = shape.batch * shape.heads;
    work.flops = flops;
    return work;
  }
  Work operator()(const Attention& op) const {
    Work work = attention(streamed(op, "scratch"), op.shape, attention_flops(op.shape));
    work.dtype = dtype(op.q);
    return work;
  }
  Work operator()(const AttentionBackward& op) const {
    Work work = attention(streamed(op, "scratch"), op.shape, attention_backward_flops(op.shape));
    work.dtype = dtype(op.q);
    return work;
  }

  // Three products per chunk of logits.rows rows: logits = x table^T, dx = logits table, dtable += logits^T
  // x. Each chunk reads the table twice and updates dtable, and its logits are written by the first product,
  // read and rewritten by the softmax, and read by the two other products. x is read by two of them. Of the loss alone:
  // the first product, and the softmax reads.
  Work operator()(const LmHead& op) const {
    const std::int64_t rows = op.x.rows, width = op.x.cols, vocabulary = op.table.rows;
    const std::int64_t chunks = divide_up(rows, op.logits.rows);
    Work work;
    const int products = op.dx ? 3 : 1;
    work.m = std::min(op.logits.rows, rows), work.n = vocabulary, work.k = width, work.batch = products * chunks;
    work.flops = {products * 2 * rows * width * vocabulary};
    work.dtype = dtype(op.x);
    const Bytes all_logits{rows * op.logits.cols * size_of(dtype(op.logits))};
    if (!op.dx) {
      work.bytes = bytes(op.x) + bytes(op.targets) + 2 * bytes(op.metrics) + bytes(op.bias) + chunks * bytes(op.table) +
                   2 * all_logits;
      return work;
    }
    work.bytes = 2 * bytes(op.x) + bytes(op.dx) + bytes(op.targets) + 2 * bytes(op.metrics) + bytes(op.bias) +
                 2 * bytes(op.dbias) + chunks * (2 * bytes(op.table) + 2 * bytes(op.dtable)) + 5 * all_logits;
    return work;
  }

  // Of the table only the rows that are looked up, and of the positions those that this rank has.
  Work operator()(const Embed& op) const {
    Work work = streamed(op, "table");
    work.bytes += Bytes{op.out.rows * op.out.cols * size_of(dtype(op.table))};
    if (op.positions) work.bytes += bytes(first_rows(op.positions, op.out.rows / op.batch)) - bytes(op.positions);
    return work;
  }
  Work operator()(const EmbedBackward& op) const {
    Work work = streamed(op, "dtable");
    work.bytes += Bytes{2 * op.d.rows * op.d.cols * size_of(dtype(op.dtable))};
    if (op.dpositions)
      work.bytes += 2 * (bytes(first_rows(op.dpositions, op.d.rows / op.batch)) - bytes(op.dpositions));
    return work;
  }
  static View first_rows(View view, std::int64_t rows) {
    view.rows = rows;
    return view;
  }

  Work operator()(const GroupedColumnSum& op) const { return streamed(op); }
  Work operator()(const Activation& op) const { return streamed(op); }
  Work operator()(const ActivationBackward& op) const { return streamed(op); }
  Work operator()(const GatedActivation& op) const { return streamed(op); }
  Work operator()(const GatedActivationBackward& op) const { return streamed(op); }
  Work operator()(const GateBackward& op) const { return streamed(op); }
  Work operator()(const RowScale& op) const { return streamed(op); }

  Work operator()(const ColumnSum& op) const { return streamed(op); }
  Work operator()(const RmsNorm& op) const { return streamed(op); }
  Work operator()(const RmsNormBackward& op) const { return streamed(op); }
  Work operator()(const LayerNorm& op) const { return streamed(op); }
  Work operator()(const LayerNormBackward& op) const { return streamed(op); }
  Work operator()(const RowMeanSquare& op) const { return streamed(op); }
  Work operator()(const RowMeanSquareBackward& op) const { return streamed(op); }
  Work operator()(const RmsScale& op) const { return streamed(op); }
  Work operator()(const RmsScaleBackward& op) const { return streamed(op); }
  Work operator()(const Rope& op) const {
    Work work = streamed(op);  // of each head only the channels that turn
    work.bytes = Bytes{2 * op.x.rows * op.heads * op.width * size_of(dtype(op.x))};
    return work;
  }
  Work operator()(const Residual& op) const { return streamed(op); }
  Work operator()(const ResidualBackward& op) const { return streamed(op); }
  Work operator()(const Sigmoid& op) const { return streamed(op); }
  Work operator()(const Route& op) const { return streamed(op); }
  Work operator()(const RouteBackward& op) const { return streamed(op); }
  Work operator()(const SigmoidBackward& op) const { return streamed(op); }
  Work operator()(const Softmax& op) const { return streamed(op); }
  Work operator()(const SoftmaxBackward& op) const { return streamed(op); }
  Work operator()(const Dispatch& op) const { return streamed(op); }
  Work operator()(const DispatchBackward& op) const { return streamed(op); }
  Work operator()(const CombineBackward& op) const { return streamed(op); }
  Work operator()(const Fill& op) const { return streamed(op); }
  Work operator()(const Cast& op) const { return streamed(op); }
  Work operator()(const SumSquares& op) const { return streamed(op); }
  Work operator()(const AdamW& op) const { return streamed(op); }

  Work operator()(const Collective&) const { return {}; }
  Work operator()(const Send&) const { return {}; }
  Work operator()(const Recv&) const { return {}; }
  Work operator()(const Free&) const { return {}; }
};

Bytes window_bytes(const View& view, const Piece& piece) {
  return {view.rows * view.cols * size_of(piece.tensors[view.tensor].dtype)};
}

}  // namespace

Work work_of(const Op& op, const Piece& piece, std::int64_t routed_rows) {
  Work work = std::visit(WorkOf{piece, routed_rows}, op);
  work.kind = kind_of(op);
  return work;
}

namespace {

template <class... T>
bool is_kind_of(OpKind kind) {
  return ((kind == kind_of(Op(T{}))) || ...);
}

}  // namespace

bool is_product(OpKind kind) {
  return is_kind_of<Gemm, GroupedGemm, ExpertCombine, Attention, AttentionBackward, LmHead>(kind);
}

Flops attention_flops(const AttentionShape& shape) {
  const std::int64_t per_score = 2 * (shape.head_dim + shape.rope_width) + 2 * shape.value_dim;
  return {shape.batch * shape.heads * score_elements(shape) * per_score};
}

Flops attention_backward_flops(const AttentionShape& shape) {
  const std::int64_t per_score = 2 * (3 * (shape.head_dim + shape.rope_width) + 2 * shape.value_dim);
  return {shape.batch * shape.heads * score_elements(shape) * per_score};
}

Bytes buffer_bytes(const Collective& op, const Piece& piece, const MeshShape&) {
  switch (op.kind) {
    case CollectiveKind::kAllGather:
      return window_bytes(op.dst, piece);
    case CollectiveKind::kReduceScatter:
    case CollectiveKind::kAllReduce:
      break;
  }
  return window_bytes(op.src, piece);
}

Bytes bytes_sent(CollectiveKind kind, Algorithm algorithm, Bytes buffer, int members) {
  const std::int64_t n = buffer.value, p = members;
  if (kind != CollectiveKind::kAllReduce) return {n * (p - 1) / p};
  return {algorithm == Algorithm::kRing ? 2 * n * (p - 1) / p : n * (p - 1)};
}

Bytes bytes_sent(const Op& op, const Piece& piece, const MeshShape& mesh) {
  if (const auto* send = std::get_if<Send>(&op)) return window_bytes(send->x, piece);
  if (const auto* collective = std::get_if<Collective>(&op))
    return bytes_sent(collective->kind, collective->algorithm, buffer_bytes(*collective, piece, mesh),
                      group_size(mesh, collective->group));
  return {};
}

// Whether its FLOPs depend on how many rows were routed.
bool is_grouped(const Op& op) {
  return std::holds_alternative<GroupedGemm>(op) || std::holds_alternative<ExpertCombine>(op);
}

Flops program_flops(const ProgramSet& set, const Program& program, const std::vector<std::int64_t>& routed_rows) {
  std::vector<std::int64_t> slots(program.chunks.size());
  for (const Slot& slot : program.slots) ++slots[static_cast<std::size_t>(slot.chunk)];
  std::map<std::pair<int, int>, std::int64_t> instances;  // of (piece, layer)
  for (std::size_t c = 0; c < program.chunks.size(); ++c)
    for (const Call& call : program.chunks[c].calls) instances[{call.piece, call.layer}] += slots[c];
  Flops total;
  for (const auto& [key, count] : instances) {
    const auto [index, layer] = key;
    const Piece& piece = set.pieces[static_cast<std::size_t>(index)];
    for (const Op& op : piece.ops)
      if (routed_rows.empty() || layer < 0 || !is_grouped(op))
        total += count * work_of(op, piece).flops;
      else  // linear in rows, and a layer's piece runs once per microbatch
        total += count / set.step.microbatches * work_of(op, piece, routed_rows[static_cast<std::size_t>(layer)]).flops;
  }
  return total;
}

}  // namespace meshwright
