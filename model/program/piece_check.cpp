#include "model/program/piece_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string_view>

#include "model/program/op_work.h"

namespace meshwright {
namespace {

// Frames whose content may be there when a piece begins: of what leaves a stage, only for the Send itself.
bool filled_by_caller(Frame frame, const Op& reader) {
  switch (frame) {
    case Frame::kX:
    case Frame::kD:
    case Frame::kStash:
    case Frame::kWeights:
    case Frame::kWeightShard:
    case Frame::kMaster:
    case Frame::kGrads:
    case Frame::kGradShard:
    case Frame::kMoment1:
    case Frame::kMoment2:
    case Frame::kTokens:
    case Frame::kMetrics:
    case Frame::kBalance:
      return true;
    case Frame::kXOut:
      return std::holds_alternative<Send>(reader);
    case Frame::kWorkspace:
    case Frame::kCommScratch:
      return false;
  }
  return false;
}

// Elements of a tensor seen as rows of its last dimension.
struct Rectangle {
  std::int64_t row, col, rows, cols;
};

bool covered(const Rectangle& r, std::span<const Rectangle> by) {
  if (r.rows <= 0 || r.cols <= 0) return true;
  for (std::size_t i = 0; i < by.size(); ++i) {
    const Rectangle& w = by[i];
    const std::int64_t top = std::max(r.row, w.row), bottom = std::min(r.row + r.rows, w.row + w.rows);
    const std::int64_t left = std::max(r.col, w.col), right = std::min(r.col + r.cols, w.col + w.cols);
    if (top >= bottom || left >= right) continue;
    const auto rest = by.subspan(i + 1);
    return covered({r.row, r.col, top - r.row, r.cols}, rest) &&
           covered({bottom, r.col, r.row + r.rows - bottom, r.cols}, rest) &&
           covered({top, r.col, bottom - top, left - r.col}, rest) &&
           covered({top, right, bottom - top, r.col + r.cols - right}, rest);
  }
  return false;
}

// A view as rectangles of its tensor. A strided window whose ld is not the tensor's counts as the whole.
std::vector<Rectangle> rectangles(const View& view, const Tensor& tensor, std::int64_t first) {
  const std::int64_t width = tensor.shape.empty() ? 1 : tensor.shape.back();
  const std::int64_t row = first / width, col = first % width;
  if (view.ld == width && col + view.cols <= width) return {{row, col, view.rows, view.cols}};
  if (view.ld != view.cols && view.rows != 1) return {{0, 0, elements(tensor.shape) / width, width}};
  const std::int64_t end = first + view.rows * view.cols, last = end / width;
  if (row == last) return {{row, col, 1, end - first}};
  return {{row, col, 1, width - col}, {row + 1, 0, last - row - 1, width}, {last, 0, 1, end % width}};
}

std::int64_t count(const View& view) { return view.rows * view.cols; }

// What an operand holds, which says what dtype it has beside the operation's others: activations and weights in one type; what
// is kept wider (norms' 1/rms, scores, gates, gradients of parameters, the optimizer's state); numbers of rows and tokens; and
// sums that are logged.
enum class Content : std::uint8_t { kNarrow, kWide, kIndex, kMetrics };

Content content_of(const Op& op, std::string_view field) {
  constexpr std::array<std::string_view, 5> kIndices{"rows", "choice", "slot", "tokens", "targets"};
  constexpr std::array<std::string_view, 17> kWide{
      "rstd",         "lse",      "scratch", "gate",  "row_gate", "scores", "mean",    "dgate",     "mean_square",
      "dmean_square", "fraction", "dgamma",  "dbeta", "dbias",    "dtable", "dscores", "dpositions"};
  const auto is_in = [&](const auto& names) { return std::ranges::find(names, field) != names.end(); };
  if (field == "metrics") return Content::kMetrics;
  if (is_in(kIndices)) return Content::kIndex;
  if (is_in(kWide)) return Content::kWide;
  if (std::holds_alternative<Route>(op)) return field == "bias" ? Content::kNarrow : Content::kWide;  // it is a weight
  if (std::holds_alternative<SumSquares>(op) || std::holds_alternative<AdamW>(op)) return Content::kWide;
  if (const auto* product = std::get_if<GroupedGemm>(&op))
    return product->ta && field == "c" ? Content::kWide : Content::kNarrow;
  if (std::holds_alternative<ColumnSum>(op) || std::holds_alternative<GroupedColumnSum>(op))
    return field == "out" || field == "weight" ? Content::kWide : Content::kNarrow;
  if (std::holds_alternative<RowMeanSquare>(op)) return field == "out" ? Content::kWide : Content::kNarrow;
  if (std::holds_alternative<RowMeanSquareBackward>(op)) return field == "d" ? Content::kWide : Content::kNarrow;
  return Content::kNarrow;
}

bool is_narrow(DType t) { return t == DType::kBF16 || t == DType::kF16; }
DType wide(DType t) { return is_narrow(t) ? DType::kF32 : t; }

// Reads a piece as the rank with one coordinate along tp does: views of own rows or columns depend on it.
class PieceReader {
 public:
  PieceReader(const Piece& piece, const MeshShape& mesh, int tp_coordinate, PieceFacts& facts)
      : piece_(piece), mesh_(mesh), tp_coordinate_(tp_coordinate), facts_(facts), state_(piece.tensors.size()) {}

  void read() {
    for (index_ = 0; index_ < piece_.ops.size(); ++index_) {
      const Op& op = piece_.ops[index_];
      if (const auto* free = std::get_if<Free>(&op)) {
        release(free->tensor);
        continue;
      }
      if (!views_are_sound(op)) continue;
      check_dtypes(op);
      for_each_operand(op, [&](std::string_view field, const View& view, Access access) {
        if (reads(op, field, access)) read_from(view);
      });
      for_each_operand(op, [&](std::string_view, const View& view, Access access) {
        if (access != Access::kRead) write_to(view);
      });
      std::visit([&](const auto& o) { check_extents(o); }, op);
    }
    for (std::size_t t = 0; t < state_.size(); ++t)
      if (state_[t].living)
        facts_.faults.push_back(fmt::format("piece {}: {} is never freed", piece_.name, piece_.tensors[t].name));
    if (const std::int64_t end = facts_.frames[static_cast<int>(Frame::kWorkspace)].all.end();
        end > piece_.workspace_bytes)
      facts_.faults.push_back(fmt::format("piece {}: its workspace has {} bytes, but its tensors need {}", piece_.name,
                                          piece_.workspace_bytes, end));
  }

 private:
  struct TensorState {
    bool living = false, freed = false;  // of workspace tensors
    std::vector<Rectangle> written;
  };

  template <class... Args>
  void fault(fmt::format_string<Args...> format, Args&&... args) {
    facts_.faults.push_back(fmt::format("piece {}, operation {} ({}): {}", piece_.name, index_,
                                        op_name(piece_.ops[index_]), fmt::format(format, std::forward<Args>(args)...)));
  }
  const Tensor& tensor(const View& view) const { return piece_.tensors[view.tensor]; }
  FrameUse& frame_of(const View& view) { return facts_.frames[static_cast<int>(tensor(view).frame)]; }

  std::int64_t first_element(const View& view) const {
    return view.offset + (view.own_rows ? tp_coordinate_ * view.rows * view.ld : 0) +
           (view.own_cols ? tp_coordinate_ * view.cols : 0);
  }

  // An all-gather in place declares that it updates dst, but of it only this member's part, src, is read.
  static bool reads(const Op& op, std::string_view field, Access access) {
    const auto* collective = std::get_if<Collective>(&op);
    if (collective && collective->in_place && field == "dst") return false;
    return access != Access::kWrite;
  }

  bool views_are_sound(const Op& op) {
    bool sound = true;
    for_each_operand(op, [&](std::string_view field, const View& view, Access) {
      if (view.tensor < 0 || view.tensor >= static_cast<TensorId>(piece_.tensors.size())) {
        fault("{} names tensor {} of {}", field, view.tensor, piece_.tensors.size());
        sound = false;
        return;
      }
      const std::int64_t first = first_element(view);
      const std::int64_t end = first + (view.rows - 1) * view.ld + view.cols;
      if (view.rows < 1 || view.cols < 1 || first < 0 || (view.rows > 1 && view.ld < view.cols) ||
          end > elements(tensor(view).shape)) {
        fault("{}, {} x {} from element {} with rows {} apart, is not within {} {}", field, view.rows, view.cols, first,
              view.ld, tensor(view).name, to_string(tensor(view).shape));
        sound = false;
      }
    });
    return sound;
  }

  void read_from(const View& view) {
    const Tensor& t = tensor(view);
    TensorState& state = state_[view.tensor];
    if (state.freed) return fault("uses {} after it was freed", t.name);
    bool written = true;
    for (const Rectangle& r : rectangles(view, t, first_element(view))) written &= covered(r, state.written);
    if (!written) {
      if (!filled_by_caller(t.frame, piece_.ops[index_]))
        fault("reads {}{} before it is written", state.written.empty() ? "" : "part of ", t.name);
      else
        frame_of(view).needs.add(t.offset, t.offset + t.bytes());
    }
    frame_of(view).all.add(t.offset, t.offset + t.bytes());
  }

  void write_to(const View& view) {
    const Tensor& t = tensor(view);
    TensorState& state = state_[view.tensor];
    if (state.freed) return fault("uses {} after it was freed", t.name);
    if (t.frame == Frame::kWorkspace && !state.living) bear(view.tensor);
    for (const Rectangle& r : rectangles(view, t, first_element(view)))
      if (!covered(r, state.written)) state.written.push_back(r);
    frame_of(view).writes.add(t.offset, t.offset + t.bytes());
    frame_of(view).all.add(t.offset, t.offset + t.bytes());
  }

  void bear(TensorId id) {
    const Tensor& t = piece_.tensors[id];
    for (std::size_t i = 0; i < state_.size(); ++i) {
      const Tensor& other = piece_.tensors[i];
      if (state_[i].living && t.offset < other.offset + other.bytes() && other.offset < t.offset + t.bytes())
        fault("{} lies over {}, which still lives", t.name, other.name);
    }
    state_[id].living = true;
  }

  void release(TensorId id) {
    if (id < 0 || id >= static_cast<TensorId>(state_.size())) return fault("names tensor {} of {}", id, state_.size());
    const Tensor& t = piece_.tensors[id];
    TensorState& state = state_[id];
    if (t.frame != Frame::kWorkspace) return fault("{} lies outside the workspace", t.name);
    if (!state.living) return fault("{} is freed {}", t.name, state.freed ? "twice" : "before it is written");
    state.living = false;
    state.freed = true;
  }

  void check_dtypes(const Op& op) {
    if (const auto* gemm = std::get_if<Gemm>(&op)) return check_product(*gemm);
    // These only move bytes, or convert, whatever they are; a collective's operands are alike.
    if (std::holds_alternative<Fill>(op) || std::holds_alternative<Cast>(op) ||
        std::holds_alternative<Collective>(op) || std::holds_alternative<Send>(op) || std::holds_alternative<Recv>(op))
      return;
    std::optional<DType> narrow, state;
    for_each_operand(op, [&](std::string_view field, const View& view, Access) {
      const DType t = tensor(view).dtype;
      std::optional<DType> expected;
      switch (content_of(op, field)) {
        case Content::kNarrow:
          if (!narrow) narrow = t;
          expected = narrow;
          break;
        case Content::kWide:
          if (!state) state = wide(t);
          expected = state;
          break;
        case Content::kIndex:
          expected = DType::kI32;
          break;
        case Content::kMetrics:
          expected = DType::kF64;
          break;
      }
      if (t != *expected || (*expected == DType::kI32) != (content_of(op, field) == Content::kIndex))
        fault("{}, {}, is {}, which its operation does not compute with", field, tensor(view).name, name(t));
    });
    if (narrow && state && wide(*narrow) != *state)
      fault("computes with {} beside {}, which is not what is kept of it", name(*narrow), name(*state));
  }
  // Alike; or narrow ones with sums kept wide; or one wide operand (a gradient of scores) that is narrowed for the product.
  void check_product(const Gemm& op) {
    const DType a = tensor(op.a).dtype, b = tensor(op.b).dtype, c = tensor(op.c).dtype;
    const DType narrow = is_narrow(a) ? a : b;
    const auto fits = [&](DType t) { return t == narrow || t == wide(narrow); };
    if (a == DType::kI32 || !fits(a) || !fits(b) || !fits(c) || (!is_narrow(narrow) && (a != b || b != c)))
      fault("a product of {} and {} does not give {}", name(a), name(b), name(c));
    if (op.bias && tensor(op.bias).dtype != b) fault("the bias is {}, b is {}", name(tensor(op.bias).dtype), name(b));
  }

  void check_extents(const Gemm& op) {
    const std::int64_t a_rows = op.ta ? op.a.cols : op.a.rows, b_rows = op.tb ? op.b.cols : op.b.rows;
    const std::int64_t b_cols = op.tb ? op.b.rows : op.b.cols;
    if (a_rows != op.m() || b_rows != op.k() || b_cols != op.n())
      fault("({} x {}) ({} x {}) does not give {} x {}", a_rows, op.k(), b_rows, b_cols, op.m(), op.n());
    if (op.bias && count(op.bias) != op.n()) fault("bias has {} elements for {} columns", count(op.bias), op.n());
  }

  void check_extents(const GroupedGemm& op) {
    const std::int64_t e = op.experts, rows = op.capacity > 0 ? e * op.capacity : op.a.rows, other = op.other();
    const bool agree = op.a.rows == rows &&
                       (op.ta ? op.b.rows == rows && op.b.cols == op.n() && op.c.rows == e * other
                              : op.a.cols == other && op.c.rows == rows &&
                                    (op.tb ? op.b.rows == e * op.n() : op.b.cols == op.n() && op.b.rows == e * other));
    if (!agree)
      fault("{} experts of {} rows: {} x {} and {} x {} do not give {} x {}", e, op.capacity, op.a.rows, op.a.cols,
            op.b.rows, op.b.cols, op.c.rows, op.c.cols);
    if (op.bias && count(op.bias) != e * op.n()) fault("bias has {} elements for {} x {}", count(op.bias), e, op.n());
    if (count(op.rows) != e) fault("rows has {} elements for {} experts", count(op.rows), e);
  }

  void check_extents(const Collective& op) {
    const int members = group_size(mesh_, op.group);
    if (members == 1) return fault("its group, {}, has one member", name(op.group));
    const std::int64_t src = count(op.src), dst = op.dst ? count(op.dst) : 0;
    if (op.kind == CollectiveKind::kAllGather && !op.dst) return fault("has no dst");
    const std::int64_t whole = op.kind == CollectiveKind::kAllGather ? dst : src;
    if (op.algorithm == Algorithm::kRing && op.kind != CollectiveKind::kAllReduce && whole % members != 0)
      fault("{} elements can't be cut into {} parts", whole, members);
    if (!op.in_place && op.kind == CollectiveKind::kAllGather && src * members != dst)
      fault("{} parts of {} elements do not give {}", members, src, dst);
    if (!op.in_place && op.kind == CollectiveKind::kReduceScatter && dst * members != src)
      fault("{} elements cut into {} parts do not give {}", src, members, dst);
    if (op.dst && tensor(op.src).dtype != tensor(op.dst).dtype)
      fault("src is {}, dst {}", name(tensor(op.src).dtype), name(tensor(op.dst).dtype));
    if (op.scratch && tensor(op.src).dtype != tensor(op.scratch).dtype)
      fault("src is {}, scratch {}", name(tensor(op.src).dtype), name(tensor(op.scratch).dtype));
    if (op.group == Group::kPp || op.group == Group::kPpEnds)
      facts_.events.push_back({.op = &piece_.ops[index_], .bytes = buffer_bytes(op, piece_, mesh_).value});
  }

  void message(const View& x) {
    const Tensor& t = tensor(x);
    facts_.events.push_back({.op = &piece_.ops[index_],
                             .bytes = count(x) * size_of(t.dtype),
                             .frame = t.frame,
                             .begin = t.offset,
                             .end = t.offset + t.bytes()});
  }
  void check_extents(const Send& op) { message(op.x); }
  void check_extents(const Recv& op) { message(op.x); }

  // Windows whose rows may be apart.
  void check_extents(const ColumnSum&) {}
  void check_extents(const Rope&) {}
  void check_extents(const Attention& op) { check_attention(op, 1); }
  void check_extents(const AttentionBackward& op) { check_attention(op, 2); }
  template <class O>
  void check_attention(const O& op, std::int64_t blocks) {
    const AttentionShape& s = op.shape;
    if (s.kv_heads < 1 || s.heads % s.kv_heads != 0)
      fault("{} heads do not share {} keys and values evenly", s.heads, s.kv_heads);
    if (op.q.cols != s.heads * s.head_dim || op.k.cols != s.kv_heads * s.head_dim ||
        op.v.cols != s.kv_heads * s.value_dim)
      fault("q, k, v have {}, {}, {} columns for {} and {} heads of {} and {}", op.q.cols, op.k.cols, op.v.cols,
            s.heads, s.kv_heads, s.head_dim, s.value_dim);
    if (count(op.scratch) < blocks * std::min(s.block, s.tokens) * s.block_columns())
      fault("scratch has {} elements for {} blocks of {} x {}", count(op.scratch), blocks, s.block, s.block_columns());
  }

  // Of the other kinds only the operands' windows and lifetimes are checked, and that rows follow each other.
  template <class O>
  void check_extents(const O& op) {
    static_assert(kOpKinds == 44, "a new kind of operation: decide here which extents must agree");
    O::fields(op, [&](std::string_view field, const auto&... rest) {
      if constexpr (kIsOperand<decltype(rest)...>) {
        [&](const View& view, Access, ExpertRows = {}) {
          if (view && view.rows > 1 && view.ld != view.cols)
            fault("{}: rows of {} columns lie {} apart", field, view.cols, view.ld);
        }(rest...);
      }
    });
  }

  const Piece& piece_;
  const MeshShape& mesh_;
  const int tp_coordinate_;
  PieceFacts& facts_;
  std::vector<TensorState> state_;
  std::size_t index_ = 0;
};

void check_stash(const Piece& piece, PieceFacts& facts) {
  std::vector<const Tensor*> stash;
  for (const Tensor& t : piece.tensors)
    if (t.frame == Frame::kStash) stash.push_back(&t);
  std::ranges::sort(stash, {}, [](const Tensor* t) { return t->offset; });
  for (std::size_t i = 1; i < stash.size(); ++i)
    if (stash[i - 1]->offset + stash[i - 1]->bytes() > stash[i]->offset)
      facts.faults.push_back(
          fmt::format("piece {}: {} lies over {} in the stash", piece.name, stash[i]->name, stash[i - 1]->name));
}

}  // namespace

PieceFacts check_piece(const Piece& piece, const MeshShape& mesh) {
  PieceFacts facts;
  PieceReader(piece, mesh, 0, facts).read();
  if (mesh.tp > 1 && facts.faults.empty()) {  // the last member sees the other end of own rows and columns
    PieceFacts last;
    PieceReader(piece, mesh, mesh.tp - 1, last).read();
    facts.faults = std::move(last.faults);
  }
  check_stash(piece, facts);
  facts.frames[static_cast<int>(Frame::kWorkspace)].all.add(0, piece.workspace_bytes);
  return facts;
}

}  // namespace meshwright
