#include "model/lowering/differentiate.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "model/program/check.h"
#include "model/program/derivative.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

// Whether its elements follow each other, so that rows and columns are only a way to see them.
bool is_contiguous(const View& v) { return (v.ld == v.cols || v.rows == 1) && !v.own_rows && !v.own_cols; }
std::int64_t count(const View& v) { return v.rows * v.cols; }

bool same_window(const View& a, const View& b) {
  if (is_contiguous(a) && is_contiguous(b)) return a.offset == b.offset && count(a) == count(b);
  return a.rows == b.rows && a.cols == b.cols && a.offset == b.offset && a.own_rows == b.own_rows &&
         a.own_cols == b.own_cols;
}

// The operation, if it gathers.
const Collective* gather(const Op& op) {
  const auto* c = std::get_if<Collective>(&op);
  return c && c->kind == CollectiveKind::kAllGather ? c : nullptr;
}

// The gradient of one tensor of the computation while it comes together.
struct Gradient {
  TensorId tensor = kNoTensor;  // of the backward
  std::size_t birth = 0;        // operation that wrote to it first
  bool whole = false;           // every element has been written
  std::vector<View> written;    // windows that have

  explicit operator bool() const { return tensor != kNoTensor; }
};

class Differentiator final : public Backward {
 public:
  // `at_once`: the operations go on behind those of the computation, whose values still live.
  Differentiator(const Piece& computation, const MeshShape& mesh, const GradientFrames& frames, bool at_once)
      : forward_(computation),
        mesh_(mesh),
        frames_(frames),
        at_once_(at_once),
        gradients_(computation.tensors.size()),
        values_(computation.tensors.size(), kNoTensor),
        kept_(computation.tensors.size(), false),
        first_writer_(computation.tensors.size(), kNobody),
        writers_(computation.tensors.size(), 0) {
    for (std::size_t i = 0; i < forward_.ops.size(); ++i)
      for_each_operand(forward_.ops[i], [&](std::string_view, const View& v, meshwright::Access access) {
        if (access == meshwright::Access::kRead) return;
        const auto t = static_cast<std::size_t>(v.tensor);
        if (first_writer_[t] == kNobody) first_writer_[t] = i;
        ++writers_[t];
      });
    if (at_once_) {
      out_ = computation;
      for (TensorId t = 0; t < static_cast<TensorId>(values_.size()); ++t) values_[static_cast<std::size_t>(t)] = t;
    }
  }

  void run() {
    clear_padding();
    for (TensorId t = 0; t < static_cast<TensorId>(forward_.tensors.size()); ++t)
      if (tensor(t).frame == Frame::kXOut)
        gradients_[static_cast<std::size_t>(t)] = {.tensor = residual_gradient(t), .whole = true};
    for (now_ = forward_.ops.size(); now_-- > 0;) meshwright::differentiate(forward_.ops[now_], *this);
    for (TensorId t = 0; t < static_cast<TensorId>(forward_.tensors.size()); ++t) {
      const Gradient& g = gradients_[static_cast<std::size_t>(t)];
      if (tensor(t).frame == Frame::kX)
        check(g.whole && g.tensor == d_, "{}: the gradient of {} does not end in kD", forward_.name, tensor(t).name);
      if (tensor(t).frame == Frame::kWeights && !is_buffer(tensor(t)))
        check(cover(g, all_of(t)) == Cover::kWhole, "{}: {} has no gradient", forward_.name, tensor(t).name);
    }
  }

  Piece take() { return std::move(out_); }
  const std::vector<bool>& kept() const { return kept_; }
  const std::vector<TensorId>& values() const { return values_; }

  // ---- what rules ask for ----

  View gradient(const View& written) override {
    Gradient& g = gradients_[index(written)];
    if (!g || cover(g, written) == Cover::kNone) return {};
    if (cover(g, written) == Cover::kPartly) fill(g, written.tensor);
    return in(g, written);
  }

  View changeable_gradient(const View& written) override {
    const View d = gradient(written);
    if (d) expect_unshared(written.tensor);
    return d;
  }

  Into into(const View& read) override {
    const Tensor& t = tensor(read.tensor);
    if (t.frame == Frame::kTokens || t.frame == Frame::kMetrics || t.dtype == DType::kI32) return {};
    Gradient& g = gradients_[index(read)];
    if (!g) g = {.tensor = gradient_tensor(read.tensor), .birth = out_.ops.size()};
    Cover there = cover(g, read);
    if (there == Cover::kPartly) {
      fill(g, read.tensor);
      there = Cover::kWhole;
    }
    const bool accumulate = there == Cover::kWhole || (t.frame == Frame::kWeights && frames_.accumulate);
    if (there == Cover::kWhole) expect_unshared(read.tensor);
    if (there == Cover::kNone) {
      g.written.push_back(read);
      g.whole = same_window(read, all_of(read.tensor));
    }
    return {in(g, read), accumulate};
  }

  void pass(const View& read, const View& d) override {
    Gradient& g = gradients_[index(read)];
    check(!g && same_window(read, all_of(read.tensor)) && count(d) == count(read), "{}: {} has a gradient already",
          forward_.name, tensor(read.tensor).name);
    if (tensor(read.tensor).frame == Frame::kX && d.tensor != d_) {  // it leaves in kD, wherever it came together
      g = {.tensor = residual_gradient(read.tensor), .whole = true};
      expect_unshared(read.tensor);
      add(Cast{d, seen_as(d, g.tensor)});
      return;
    }
    g = {.tensor = d.tensor, .whole = true};
  }

  View value(const View& v) override {
    TensorId& there = values_[index(v)];
    if (there != kNoTensor) return seen_as(v, there);
    const Tensor& t = tensor(v.tensor);
    if (t.frame != Frame::kWorkspace) {
      there = declare(t);
    } else if (const std::optional<View> part = part_of_gathered(v)) {
      return *part;
    } else if (is_cheap(v.tensor)) {
      const std::size_t begin = out_.ops.size();
      values_[index(v)] = compute_again(v.tensor);
      start_early(begin);
      return seen_as(v, values_[index(v)]);
    } else {
      kept_[index(v)] = true;
      there = declare({t.name, t.shape, t.dtype, Frame::kStash, 0});
    }
    return seen_as(v, there);
  }

  View changeable_value(const View& v) override {
    check(tensor(v.tensor).frame == Frame::kWorkspace && is_cheap(v.tensor), "{}: {} is kept, and can't be changed",
          forward_.name, tensor(v.tensor).name);
    const View mine = value(v);
    values_[index(v)] = kNoTensor;
    return mine;
  }

  DType dtype(const View& v) const override { return tensor(v.tensor).dtype; }

  View temporary(const std::string& name, std::int64_t rows, std::int64_t cols, DType dtype) override {
    return {declare({name, {rows, cols}, dtype, Frame::kWorkspace, 0}), rows, cols, cols, 0};
  }
  void add(Op op) override { out_.ops.push_back(std::move(op)); }
  const MeshShape& mesh() const override { return mesh_; }

 private:
  static constexpr std::size_t kNobody = static_cast<std::size_t>(-1);

  static std::size_t index(const View& v) { return static_cast<std::size_t>(v.tensor); }
  const Tensor& tensor(TensorId t) const { return forward_.tensors[static_cast<std::size_t>(t)]; }
  View all_of(TensorId t) const {
    const std::int64_t cols = tensor(t).shape.back();
    return {t, elements(tensor(t).shape) / cols, cols, cols, 0};
  }
  TensorId declare(Tensor t) {
    out_.tensors.push_back(std::move(t));
    return static_cast<TensorId>(out_.tensors.size()) - 1;
  }
  static View seen_as(View v, TensorId t) {
    v.tensor = t;
    return v;
  }
  static View in(const Gradient& g, const View& v) { return seen_as(v, g.tensor); }

  // ---- gradients ----

  TensorId residual_gradient(TensorId of) {
    if (d_ == kNoTensor) d_ = declare({"d", tensor(of).shape, tensor(of).dtype, Frame::kD, 0});
    return d_;
  }

  TensorId gradient_tensor(TensorId of) {
    const Tensor& t = tensor(of);
    if (t.frame == Frame::kX) return residual_gradient(of);
    if (t.frame == Frame::kWeights)
      return declare(
          {"d." + t.name, t.shape, frames_.state, Frame::kGrads, t.offset / size_of(t.dtype) * size_of(frames_.state)});
    return declare({"d." + t.name, t.shape, t.dtype, Frame::kWorkspace, 0});
  }

  enum class Cover { kNone, kPartly, kWhole };
  // How much of a window has been written. Windows one behind the other, or side by side over all rows, make up a whole;
  // others that are not the same count as a part.
  Cover cover(const Gradient& g, const View& v) const {
    if (!g || (!g.whole && g.written.empty())) return Cover::kNone;
    if (g.whole) return Cover::kWhole;
    for (const View& w : g.written)
      if (same_window(w, v)) return Cover::kWhole;
    const auto all = [&](auto&& is) { return is(v) && std::all_of(g.written.begin(), g.written.end(), is); };
    if (all(is_contiguous)) return cover_spans(g, v, count);
    const View whole = all_of(v.tensor);
    const auto is_columns = [&](const View& w) {
      return !w.own_rows && !w.own_cols && w.rows == whole.rows && w.ld == whole.ld;
    };
    const View seen = same_window(v, whole) ? whole : v;
    if (is_columns(seen) && std::all_of(g.written.begin(), g.written.end(), is_columns))
      return cover_spans(g, seen, [](const View& w) { return w.cols; });
    return Cover::kPartly;
  }
  // The same, of windows [offset, offset + length(window)).
  template <class Length>
  static Cover cover_spans(const Gradient& g, const View& v, Length length) {
    std::vector<std::pair<std::int64_t, std::int64_t>> spans;
    for (const View& w : g.written) spans.emplace_back(w.offset, w.offset + length(w));
    std::sort(spans.begin(), spans.end());
    std::int64_t at = v.offset;
    const std::int64_t end_of_v = v.offset + length(v);
    bool touched = false;
    for (const auto& [begin, end] : spans) {
      touched |= begin < end_of_v && v.offset < end;
      if (begin <= at) at = std::max(at, end);
    }
    return !touched ? Cover::kNone : at >= end_of_v ? Cover::kWhole : Cover::kPartly;
  }

  // What nothing has been written to is 0: from its birth on, so that all else is added. But a gradient that earlier
  // microbatches have left something in must not be cleared.
  void fill(Gradient& g, TensorId of) {
    check(tensor(of).frame != Frame::kWeights || !frames_.accumulate,
          "{}: a part of {} is used, then a larger one: clearing its gradient would lose that of earlier microbatches",
          forward_.name, tensor(of).name);
    const std::size_t at = g.birth;
    out_.ops.insert(out_.ops.begin() + static_cast<std::ptrdiff_t>(at), Fill{in(g, all_of(of))});
    for (Gradient& other : gradients_)
      if (other && other.birth >= at && &other != &g) ++other.birth;
    g.whole = true;
  }

  // Where a gradient was passed on, several tensors share it. It may change once the others' is used up: when all that
  // wrote them in the forward pass is behind us.
  void expect_unshared(TensorId t) const {
    const TensorId shared = gradients_[static_cast<std::size_t>(t)].tensor;
    for (std::size_t other = 0; other < gradients_.size(); ++other)
      if (gradients_[other].tensor == shared && static_cast<TensorId>(other) != t)
        check(first_writer_[other] != kNobody && first_writer_[other] > now_,
              "{}: the gradients of {} and {} are one, and one of them would change", forward_.name, tensor(t).name,
              forward_.tensors[other].name);
  }

  bool is_buffer(const Tensor& weight) const {
    if (!frames_.block) return false;
    const std::int64_t at = weight.offset / size_of(weight.dtype);
    const std::vector<Unit>& units = frames_.block->units;
    return std::any_of(units.begin(), units.end(),
                       [&](const Unit& u) { return !u.trained && u.offset <= at && at < u.offset + u.padded; });
  }

  void clear_padding() {
    if (frames_.accumulate || !frames_.block) return;
    for (const Unit& unit : frames_.block->units)
      if (const std::int64_t pad = unit.padded - unit.elements; unit.trained && pad > 0)
        add(Fill{{declare({"d." + unit.name + ".padding",
                           {1, pad},
                           frames_.state,
                           Frame::kGrads,
                           (unit.offset + unit.elements) * size_of(frames_.state)}),
                  1, pad, pad, 0}});
  }

  // ---- values of the forward pass ----

  const Op& writer(TensorId t) const { return forward_.ops[first_writer_[static_cast<std::size_t>(t)]]; }

  bool is_cheap(TensorId t) const {
    if (tensor(t).frame != Frame::kWorkspace || writers_[static_cast<std::size_t>(t)] != 1) return false;
    const Op& op = writer(t);
    if (const Collective* c = gather(op)) return is_cheap(c->src.tensor);
    if (const auto* norm = std::get_if<RmsNorm>(&op)) return norm->out.tensor == t;  // 1/rms is small: kept
    if (const auto* norm = std::get_if<LayerNorm>(&op)) return norm->out.tensor == t;
    return is_cheap_again(op);
  }

  // A rank's own part of a sequence that was gathered, where the whole is there.
  std::optional<View> part_of_gathered(const View& v) const {
    for (const Op& op : forward_.ops) {
      const Collective* c = gather(op);
      if (!c || c->src.tensor != v.tensor || c->group != Group::kTp) continue;
      const TensorId whole = values_[index(c->dst)];
      if (whole == kNoTensor || is_cheap(c->dst.tensor) || v.rows != all_of(v.tensor).rows) continue;
      View part = seen_as(v, whole);
      part.own_rows = true;
      return part;
    }
    return std::nullopt;
  }

  TensorId compute_again(TensorId t) {
    Op op = again(writer(t), [](const View&) { return true; });
    TensorId result = kNoTensor;
    map_operands(op, [&](std::string_view, View& v, meshwright::Access access) {
      if (!v) return;
      if (access == meshwright::Access::kRead) {
        v = value(v);
      } else {
        const Tensor& old = tensor(v.tensor);
        const TensorId made = declare({old.name, old.shape, old.dtype, Frame::kWorkspace, 0});
        if (v.tensor == t) result = made;
        v.tensor = made;
      }
    });
    add(std::move(op));
    return result;
  }

  // Moves the operations from `begin` on, which compute a value again, up to behind the collective that a gather among them
  // would queue after anyway, so that it comes while others compute.
  void start_early(std::size_t begin) {
    const auto chain = out_.ops.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto gathers = std::find_if(chain, out_.ops.end(), [&](const Op& op) { return gather(op); });
    if (gathers == out_.ops.end()) return;
    const auto made_here = [&](TensorId t) {
      return std::any_of(chain, out_.ops.end(), [&](const Op& op) { return writes(op, t); });
    };
    std::size_t to = begin;
    for (; to > 0; --to) {
      const Op& before = out_.ops[to - 1];
      if (std::holds_alternative<Collective>(before) && stream_of(before) == stream_of(*gathers)) break;
      bool needed = false;
      for (auto op = chain; op != out_.ops.end(); ++op)
        for_each_operand(*op, [&](std::string_view, const View& v, meshwright::Access access) {
          needed |= access == meshwright::Access::kRead && !made_here(v.tensor) && writes(before, v.tensor);
        });
      if (needed) break;
    }
    const std::size_t moved = out_.ops.size() - begin;
    std::rotate(out_.ops.begin() + static_cast<std::ptrdiff_t>(to), chain, out_.ops.end());
    for (Gradient& g : gradients_)
      if (g && g.birth >= to && g.birth < begin) g.birth += moved;
  }
  static bool writes(const Op& op, TensorId t) {
    bool found = false;
    for_each_operand(op, [&](std::string_view, const View& v, meshwright::Access access) {
      found |= access != meshwright::Access::kRead && v.tensor == t;
    });
    return found;
  }

  const Piece& forward_;
  const MeshShape& mesh_;
  const GradientFrames& frames_;
  const bool at_once_;
  Piece out_;
  std::vector<Gradient> gradients_;  // by tensor of the computation
  std::vector<TensorId> values_;     // where its value is in the backward
  std::vector<bool> kept_;           // whether it is one that the forward pass leaves
  std::vector<std::size_t> first_writer_;
  std::vector<int> writers_;
  TensorId d_ = kNoTensor;
  std::size_t now_ = 0;  // the operation whose rule runs
};

// Operations of which nothing is read afterwards, here or in other pieces.
void drop_unread_operations(Piece& piece) {
  std::vector<bool> wanted(piece.tensors.size(), false);
  std::vector<Op> read;
  for (auto op = piece.ops.rbegin(); op != piece.ops.rend(); ++op) {
    bool is_read = false;
    for_each_operand(*op, [&](std::string_view, const View& v, Access access) {
      const auto t = static_cast<std::size_t>(v.tensor);
      is_read |= access != Access::kRead && (wanted[t] || piece.tensors[t].frame != Frame::kWorkspace);
    });
    if (!is_read) continue;
    for_each_operand(*op, [&](std::string_view, const View& v, Access access) {
      if (access != Access::kWrite) wanted[static_cast<std::size_t>(v.tensor)] = true;
    });
    read.push_back(std::move(*op));
  }
  std::ranges::reverse(read);
  piece.ops = std::move(read);
}

// The part of the computation that leads from what is kept to what is computed again, in front of the backward. What it
// gathers on its way stays for the backward, which would gather it once more.
void compute_in_front(const Piece& computation, const Differentiator& derived, const std::vector<bool>& again_,
                      Piece& backward) {
  const auto kept = [&](TensorId t) {
    return derived.kept()[static_cast<std::size_t>(t)] && !again_[static_cast<std::size_t>(t)];
  };
  std::vector<bool> needed = again_;
  std::vector<bool> runs(computation.ops.size(), false);
  const auto once_more = [&](const Op& op) { return again(op, [&](const View& v) { return kept(v.tensor); }); };
  for (std::size_t i = computation.ops.size(); i-- > 0;) {
    for_each_operand(computation.ops[i], [&](std::string_view, const View& v, Access access) {
      if (access != Access::kRead && needed[static_cast<std::size_t>(v.tensor)]) runs[i] = true;
    });
    if (!runs[i]) continue;
    for_each_operand(once_more(computation.ops[i]), [&](std::string_view, const View& v, Access access) {
      if (access != Access::kWrite && !kept(v.tensor)) needed[static_cast<std::size_t>(v.tensor)] = true;
    });
  }
  // What is computed again lies in the workspace; what only leads to it is this part's own.
  std::vector<TensorId> place(computation.tensors.size(), kNoTensor), spare = place;
  for (std::size_t t = 0; t < place.size(); ++t) {
    if (derived.kept()[t] || computation.tensors[t].frame != Frame::kWorkspace) place[t] = derived.values()[t];
    if (again_[t]) backward.tensors[static_cast<std::size_t>(place[t])].frame = Frame::kWorkspace;
  }
  for (std::size_t i = 0; i < computation.ops.size(); ++i) {
    const Collective* gathers = runs[i] ? gather(computation.ops[i]) : nullptr;
    if (!gathers) continue;
    const auto t = static_cast<std::size_t>(gathers->dst.tensor);
    const TensorId later = derived.values()[t];
    if (place[t] != kNoTensor || later == kNoTensor) continue;
    place[t] = later;
    std::erase_if(backward.ops, [&](const Op& op) { return gather(op) && gather(op)->dst.tensor == later; });
  }
  std::vector<Op> ops;
  for (std::size_t i = 0; i < computation.ops.size(); ++i) {
    if (!runs[i]) continue;
    Op op = once_more(computation.ops[i]);
    map_operands(op, [&](std::string_view, View& v, Access access) {
      if (!v) return;
      const auto t = static_cast<std::size_t>(v.tensor);
      // What is kept stays as it is, even if an operation that runs again would write it once more, and so does what the
      // forward pass left to others (kXOut, whose memory has other uses by now).
      const bool stays = kept(v.tensor) || computation.tensors[t].frame != Frame::kWorkspace;
      TensorId& at = stays && access != Access::kRead ? spare[t] : place[t];
      if (at == kNoTensor) {
        backward.tensors.push_back(computation.tensors[t]);
        if (access != Access::kRead) backward.tensors.back().frame = Frame::kWorkspace;
        at = static_cast<TensorId>(backward.tensors.size()) - 1;
      }
      v.tensor = at;
    });
    ops.push_back(std::move(op));
  }
  backward.ops.insert(backward.ops.begin(), std::make_move_iterator(ops.begin()), std::make_move_iterator(ops.end()));
  drop_unread_operations(backward);
  drop_unused_tensors(backward);
}

// Of collectives of one group, one behind the other, the one that moves least goes first: what waits for it goes on beside the
// others.
void small_collectives_first(Piece& piece, const MeshShape& mesh) {
  const auto apart = [](const Op& a, const Op& b) {
    bool share = false;
    for_each_operand(a, [&](std::string_view, const View& of_a, Access) {
      for_each_operand(b, [&](std::string_view, const View& of_b, Access) { share |= of_a.tensor == of_b.tensor; });
    });
    return !share;
  };
  const auto moves_less = [&](const Op& a, const Op& b) {
    return bytes_sent(a, piece, mesh).value < bytes_sent(b, piece, mesh).value;
  };
  for (std::size_t i = 1; i < piece.ops.size(); ++i)
    for (std::size_t j = i; j > 0; --j) {
      Op &before = piece.ops[j - 1], &op = piece.ops[j];
      if (!std::holds_alternative<Collective>(before) || !std::holds_alternative<Collective>(op) ||
          stream_of(before) != stream_of(op) || !moves_less(op, before) || !apart(op, before))
        break;
      std::swap(before, op);
    }
}

void finish(Piece& piece) {
  free_after_last_use(piece);
  place_workspace(piece);
}

}  // namespace

Differentiated differentiate(const Piece& computation, const MeshShape& mesh, const GradientFrames& frames,
                             const StashPolicy& policy, const std::string& name) {
  Differentiator derived(computation, mesh, frames, false);
  derived.run();
  Differentiated out{.forward = computation, .backward = derived.take()};
  out.forward.name = name + ".forward";
  out.backward.name = name + ".backward";
  const std::vector<bool> again = computed_again(computation, derived.kept(), policy);
  for (std::size_t t = 0; t < computation.tensors.size(); ++t) {
    if (!derived.kept()[t] || again[t]) continue;
    Tensor& kept = out.forward.tensors[t];
    kept.frame = Frame::kStash;
    kept.offset = out.stash_bytes;
    out.backward.tensors[static_cast<std::size_t>(derived.values()[t])].offset = out.stash_bytes;
    out.stash_bytes += align_up(kept.bytes());
  }
  if (std::ranges::find(again, true) != again.end()) compute_in_front(computation, derived, again, out.backward);
  finish(out.forward);
  small_collectives_first(out.backward, mesh);
  finish(out.backward);
  return out;
}

Piece forward_alone(Piece computation, std::string name) {
  computation.name = std::move(name);
  finish(computation);
  return computation;
}

Piece differentiate_at_once(Piece computation, const MeshShape& mesh, const GradientFrames& frames) {
  Differentiator derived(computation, mesh, frames, true);
  derived.run();
  Piece piece = derived.take();
  finish(piece);
  return piece;
}

}  // namespace meshwright
