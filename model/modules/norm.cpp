#include "model/modules/norm.h"

namespace meshwright {

void Norm::list(ParameterList& list, const std::string& name, std::int64_t width, ModuleKind module) const {
  list.constant(name + ".gamma", {width}, around_one ? 0 : 1, module);
  if (shift || kind == Kind::kLayer) list.constant(name + ".beta", {width}, 0, module);
}

View Norm::forward(Forward& f, const View& x, const std::string& name, std::string_view as) const {
  const View out = f.value(as, x.rows, x.cols);
  forward_into(f, x, name, out);
  return out;
}

void Norm::forward_into(Forward& f, const View& x, const std::string& name, const View& out) const {
  const View rstd = f.value("rstd." + name, x.rows, 1, f.state());
  const View gamma = f.param(name + ".gamma"), beta = f.param_if(name + ".beta");
  if (kind == Kind::kLayer)
    f.add(LayerNorm{.x = x,
                    .gamma = gamma,
                    .beta = beta,
                    .out = out,
                    .mean = f.value("mean." + name, x.rows, 1, f.state()),
                    .rstd = rstd,
                    .epsilon = epsilon});
  else
    f.add(RmsNorm{.x = x,
                  .gamma = gamma,
                  .beta = beta,
                  .out = out,
                  .rstd = rstd,
                  .epsilon = epsilon,
                  .gamma_offset = around_one ? 1.0 : 0.0});
}

}  // namespace meshwright
