#include "model/program/program.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <optional>
#include <set>
#include <stdexcept>
#include <tuple>

#include "model/program/byte_ranges.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

View whole(const Piece& piece, TensorId t) {
  const Shape& shape = piece.tensors[t].shape;
  return {t, elements(shape) / shape.back(), shape.back(), shape.back(), 0};
}

TEST(Mesh, PrintsAndSizesItsGroups) {
  const MeshShape mesh{8, 4, 2};
  EXPECT_EQ(to_string(mesh), "8x4x2");
  EXPECT_EQ(mesh.ranks(), 64);
  EXPECT_EQ(group_size(mesh, Group::kDp), 8);
  EXPECT_EQ(group_size(mesh, Group::kPp), 4);
  EXPECT_EQ(group_size(mesh, Group::kTp), 2);
  EXPECT_EQ(group_size(mesh, Group::kPpEnds), 2);
  EXPECT_EQ(group_size({8, 1, 2}, Group::kPpEnds), 1);
}

TEST(Tensor, ShapesAndLayoutsPrint) {
  EXPECT_EQ(to_string(Shape{1024, 8, 768}), "(1024, 8, 768)");
  EXPECT_EQ(to_string(Layout::replicate()), "replicate");
  EXPECT_EQ(to_string(Layout::shard(0)), "shard(0)");
  EXPECT_EQ(to_string(Layout::shard(1, 2)), "shard(1, 2 blocks)");
  EXPECT_EQ(to_string(Layout::partial()), "partial");
  EXPECT_EQ((Tensor{"x", {3, 5}, DType::kBF16}).bytes(), 3 * 5 * 2);
}

TEST(Op, KindsHaveDistinctNames) {
  std::set<std::string_view> names;
  for (int kind = 0; kind < kOpKinds; ++kind) names.insert(kind_name(static_cast<OpKind>(kind)));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kOpKinds));
  EXPECT_EQ(kind_name(kind_of(Gemm{})), "gemm");
  EXPECT_EQ(kind_name(kind_of(Collective{})), "collective");
  EXPECT_EQ(op_name(Collective{.kind = CollectiveKind::kReduceScatter, .src = {}, .dst = {}}), "reduce-scatter");
}

TEST(Op, CommunicationHasItsOwnStreams) {
  const auto collective = [](Group group) { return Collective{.group = group, .src = {}, .dst = {}}; };
  EXPECT_EQ(stream_of(collective(Group::kTp)), Stream::kTp);
  EXPECT_EQ(stream_of(collective(Group::kDp)), Stream::kDp);
  EXPECT_EQ(stream_of(collective(Group::kPp)), Stream::kPp);
  EXPECT_EQ(stream_of(collective(Group::kPpEnds)), Stream::kPp);
  EXPECT_EQ(stream_of(Send{{}, Direction::kNext}), Stream::kSendNext);
  EXPECT_EQ(stream_of(Send{{}, Direction::kPrevious}), Stream::kSendPrevious);
  EXPECT_EQ(stream_of(Recv{{}, Direction::kNext}), Stream::kRecvNext);
  EXPECT_EQ(stream_of(Recv{{}, Direction::kPrevious}), Stream::kRecvPrevious);
  EXPECT_EQ(stream_of(Gemm{}), Stream::kCompute);
  EXPECT_EQ(stream_of(Free{}), Stream::kCompute);
}

// ---- work -------------------------------------------------------------------------------------------------

TEST(Work, GemmCountsTwoFlopsPerMultiplyAddAndEachOperandOnce) {
  Piece piece{.name = "p",
              .tensors = {{"a", {4, 8}, DType::kBF16}, {"b", {8, 16}, DType::kBF16}, {"c", {4, 16}}, {"bias", {1, 16}}},
              .ops = {}};
  Gemm gemm{.a = whole(piece, 0), .b = whole(piece, 1), .c = whole(piece, 2), .bias = whole(piece, 3)};
  Work work = work_of(gemm, piece);
  EXPECT_EQ(work.flops.value, 2 * 4 * 16 * 8);
  EXPECT_EQ(work.bytes.value, 2 * (4 * 8 + 8 * 16) + 4 * (4 * 16 + 16));
  EXPECT_EQ(std::tuple(work.m, work.n, work.k, work.batch), std::tuple(4, 16, 8, 1));
  EXPECT_EQ(work.dtype, DType::kBF16);
  EXPECT_EQ(kind_name(work.kind), "gemm");
  gemm.accumulate = true;  // c is read, too
  EXPECT_EQ(work_of(gemm, piece).bytes.value, work.bytes.value + 4 * 4 * 16);
}

TEST(Work, GroupedGemmIsLinearInTheRowsThatWereRouted) {
  // 3 experts of 10 rows: a (30, 8), b (3 * 8, 16), c (30, 16)
  Piece piece{.name = "p",
              .tensors = {{"a", {30, 8}}, {"b", {24, 16}}, {"c", {30, 16}}, {"rows", {1, 3}, DType::kI32}},
              .ops = {}};
  const GroupedGemm op{.a = whole(piece, 0),
                       .b = whole(piece, 1),
                       .c = whole(piece, 2),
                       .rows = whole(piece, 3),
                       .experts = 3,
                       .capacity = 10};
  const Work full = work_of(op, piece), routed = work_of(op, piece, 7);
  EXPECT_EQ(full.flops.value, 2 * 30 * 8 * 16);
  EXPECT_EQ(std::tuple(full.m, full.n, full.k, full.batch), std::tuple(10, 16, 8, 3));
  EXPECT_EQ(full.bytes.value, 4 * (30 * 8 + 24 * 16 + 30 * 16 + 3));
  EXPECT_EQ(routed.flops.value, 2 * 7 * 8 * 16);
  EXPECT_EQ(routed.m, 3);  // 7 rows over 3 experts, rounded up
  EXPECT_EQ(routed.bytes.value, 4 * (7 * 8 + 24 * 16 + 7 * 16 + 3));

  // Weight gradient: c_e (8 x 16) = a_e^T b_e, the rows are the inner extent.
  Piece gradient{.name = "p",
                 .tensors = {{"a", {30, 8}}, {"b", {30, 16}}, {"c", {24, 16}}, {"rows", {1, 3}, DType::kI32}},
                 .ops = {}};
  const GroupedGemm dw{.a = whole(gradient, 0),
                       .b = whole(gradient, 1),
                       .c = whole(gradient, 2),
                       .rows = whole(gradient, 3),
                       .experts = 3,
                       .capacity = 10,
                       .ta = true};
  const Work work = work_of(dw, gradient, 7);
  EXPECT_EQ(work.flops.value, 2 * 7 * 8 * 16);
  EXPECT_EQ(std::tuple(work.m, work.n, work.k, work.batch), std::tuple(8, 16, 3, 3));
}

TEST(Work, OnlyExpertRowsAreCountedByTheRowsThatAreRouted) {
  // Of 3 experts with 8 inputs each the weights have as many rows as the buffer, 24; so have the tokens, of which each
  // chooses one.
  Piece piece{.name = "p",
              .tensors = {{"a", {24, 8}}, {"b", {24, 16}}, {"c", {24, 16}}, {"rows", {1, 3}, DType::kI32}},
              .ops = {}};
  GroupedGemm op{.a = whole(piece, 0),
                 .b = whole(piece, 1),
                 .c = whole(piece, 2),
                 .rows = whole(piece, 3),
                 .experts = 3,
                 .capacity = 8};
  EXPECT_EQ(work_of(op, piece, 7).bytes.value, 4 * (7 * 8 + 24 * 16 + 7 * 16 + 3));
  op.ta = true;  // c is the weights' gradient, b the rows
  EXPECT_EQ(work_of(op, piece, 7).bytes.value, 4 * (7 * 8 + 7 * 16 + 24 * 16 + 3));

  const RouteShape shape{.tokens = 12, .batch = 2, .experts = 3, .choices = 1};
  Piece tokens{.name = "p",
               .tensors = {{"tokens", {24, 8}},
                           {"rows", {24, 8}},
                           {"choice", {24, 1}, DType::kI32},
                           {"slot", {24, 1}, DType::kI32},
                           {"gate", {24, 1}},
                           {"row_gate", {24, 1}}},
               .ops = {}};
  EXPECT_EQ(work_of(Dispatch{whole(tokens, 0), whole(tokens, 3), whole(tokens, 1), shape}, tokens, 7).bytes.value,
            4 * (24 * 8 + 24 + 7 * 8));
  EXPECT_EQ(work_of(CombineBackward{whole(tokens, 0), whole(tokens, 2), whole(tokens, 3), whole(tokens, 4),
                                    whole(tokens, 1), whole(tokens, 5), shape},
                    tokens, 7)
                .bytes.value,
            4 * (24 * 8 + 3 * 24 + 7 * 8 + 7));
}

TEST(Work, AttentionFlopsAreThoseOfTheBlocksThatAreComputed) {
  EXPECT_TRUE(rc::check([] {
    const auto upto = [](int n) { return rc::gen::inRange<std::int64_t>(1, n); };
    const AttentionShape shape{.tokens = *upto(40),
                               .batch = *upto(4),
                               .heads = *upto(4),
                               .kv_heads = 1,
                               .head_dim = *upto(9),
                               .value_dim = *upto(9),
                               .rope_width = *rc::gen::inRange<std::int64_t>(0, 5),
                               .block = *upto(50),
                               .window = *rc::gen::inRange<std::int64_t>(0, 45)};
    std::int64_t forward = 0, backward = 0;
    for (std::int64_t i = 0; i < shape.tokens; ++i)  // row i is computed up to the last column of its block
      for (std::int64_t j = 0; j < std::min(shape.tokens, (i / shape.block + 1) * shape.block); ++j) {
        // ... from the first that the block's first row sees
        if (shape.window > 0 && i / shape.block * shape.block - j >= shape.window) continue;
        forward += 2 * (shape.head_dim + shape.rope_width) + 2 * shape.value_dim;
        backward += 2 * (3 * (shape.head_dim + shape.rope_width) + 2 * shape.value_dim);
      }
    RC_ASSERT(attention_flops(shape).value == shape.batch * shape.heads * forward);
    RC_ASSERT(attention_backward_flops(shape).value == shape.batch * shape.heads * backward);
  }));
}

TEST(Work, AttentionDoesNotCountItsScratch) {
  // T = 4, B = 2, one head of 3, blocks of 2 rows: scores (2 x 2) and (2 x 4), 12 elements per sequence
  Piece piece{.name = "p",
              .tensors = {{"q", {8, 3}}, {"kv", {8, 6}}, {"o", {8, 3}}, {"lse", {2, 4}}, {"s", {2, 4}}},
              .ops = {}};
  const Attention op{
      .q = whole(piece, 0),
      .k = whole(piece, 1).columns(0, 3),
      .v = whole(piece, 1).columns(3, 3),
      .out = whole(piece, 2),
      .lse = whole(piece, 3),
      .scratch = whole(piece, 4),
      .shape = {.tokens = 4, .batch = 2, .heads = 1, .kv_heads = 1, .head_dim = 3, .value_dim = 3, .block = 2}};
  const Work work = work_of(op, piece);
  EXPECT_EQ(work.flops.value, 2 * 12 * (2 * 3 + 2 * 3));
  EXPECT_EQ(work.bytes.value, 4 * (8 * 3 + 8 * 6 + 8 * 3 + 2 * 4));
  EXPECT_EQ(std::tuple(work.m, work.n, work.k, work.batch), std::tuple(2, 3, 3, 2));
}

TEST(Work, LmHeadIsThreeProductsAndStreamsTheTablePerChunk) {
  // 6 rows of 4, 10 words, 4 rows of logits at a time: 2 chunks
  Piece piece{.name = "p",
              .tensors = {{"x", {6, 4}},
                          {"table", {10, 4}},
                          {"targets", {6, 1}, DType::kI32},
                          {"dx", {6, 4}},
                          {"dtable", {10, 4}},
                          {"logits", {4, 10}},
                          {"metrics", {1, 4}, DType::kF64}},
              .ops = {}};
  const LmHead op{whole(piece, 0), whole(piece, 1), whole(piece, 2), whole(piece, 3),
                  whole(piece, 4), whole(piece, 5), whole(piece, 6)};
  const Work work = work_of(op, piece);
  EXPECT_EQ(work.flops.value, 3 * 2 * 6 * 4 * 10);
  EXPECT_EQ(work.bytes.value, 4 * (3 * 6 * 4 + 6 + 2 * (4 * 10 * 4) + 5 * 6 * 10) + 2 * 8 * 4);
  EXPECT_EQ(std::tuple(work.m, work.n, work.k, work.batch), std::tuple(4, 10, 4, 6));
}

TEST(Work, EmbeddingTouchesOnlyTheRowsThatItLooksUp) {
  Piece piece{
      .name = "p", .tensors = {{"table", {1000, 8}}, {"tokens", {6, 1}, DType::kI32}, {"x", {6, 8}}}, .ops = {}};
  EXPECT_EQ(
      work_of(Embed{.table = whole(piece, 0), .tokens = whole(piece, 1), .out = whole(piece, 2)}, piece).bytes.value,
      4 * (6 + 2 * 6 * 8));
  EXPECT_EQ(work_of(EmbedBackward{whole(piece, 2), whole(piece, 1), whole(piece, 0)}, piece).bytes.value,
            4 * (6 + 3 * 6 * 8));
}

TEST(Work, RowsOfPositionsAreThoseOfTheTokensHere) {
  // 6 rows of 2 sequences: 3 of 50 positions
  Piece piece{.name = "p",
              .tensors = {{"table", {1000, 8}}, {"tokens", {6, 1}, DType::kI32}, {"positions", {50, 8}}, {"x", {6, 8}}},
              .ops = {}};
  const Embed embed{.table = whole(piece, 0),
                    .tokens = whole(piece, 1),
                    .positions = whole(piece, 2),
                    .out = whole(piece, 3),
                    .batch = 2};
  EXPECT_EQ(work_of(embed, piece).bytes.value, 4 * (6 + 2 * 6 * 8 + 3 * 8));
  const EmbedBackward backward{.d = whole(piece, 3),
                               .tokens = whole(piece, 1),
                               .dtable = whole(piece, 0),
                               .dpositions = whole(piece, 2),
                               .batch = 2};
  EXPECT_EQ(work_of(backward, piece).bytes.value, 4 * (6 + 3 * 6 * 8 + 2 * 3 * 8));
}

TEST(Work, OfExpertsWithoutACapacityIsThatOfEveryChoiceOrOfTheRowsThatWereRouted) {
  // 5 tokens of 2 sequences choose 2 of 3 experts: 20 rows, 8 -> 2 x 16
  const RouteShape shape{.tokens = 5, .batch = 2, .experts = 3, .choices = 2};
  EXPECT_EQ(shape.buffer_rows(), 20);
  Piece piece{
      .name = "p",
      .tensors = {{"a", {20, 8}}, {"w", {3 * 8, 32}}, {"c", {20, 32}}, {"rows", {1, 3}, DType::kI32}, {"h", {20, 16}}},
      .ops = {}};
  const GroupedGemm gemm{.a = whole(piece, 0),
                         .b = whole(piece, 1),
                         .c = whole(piece, 2),
                         .rows = whole(piece, 3),
                         .experts = 3,
                         .capacity = shape.row_capacity()};
  EXPECT_EQ(work_of(gemm, piece).flops.value, 2 * 20 * 8 * 32);
  EXPECT_EQ(work_of(gemm, piece).m, 7);  // 20 / 3, rounded up
  EXPECT_EQ(work_of(gemm, piece, 6).flops.value, 2 * 6 * 8 * 32);
  const GatedActivation act{.in = whole(piece, 2), .out = whole(piece, 4), .rows = whole(piece, 3), .experts = 3};
  EXPECT_EQ(work_of(act, piece).bytes.value, 4 * (20 * 32 + 20 * 16 + 3));
  EXPECT_EQ(work_of(act, piece, 6).bytes.value, 4 * (6 * 32 + 6 * 16 + 3));
  EXPECT_EQ((RouteShape{5, 2, 3, 2, 4}.buffer_rows()), 3 * 2 * 4);
}

TEST(Work, OfRotationIsThatOfTheChannelsThatTurn) {
  Piece piece{.name = "p", .tensors = {{"x", {6, 40}}}, .ops = {}};  // 4 heads of 10, of which 4 turn
  EXPECT_EQ(work_of(Rope{.x = whole(piece, 0), .heads = 4, .head_width = 10, .width = 4}, piece).bytes.value,
            2 * 4 * 6 * 4 * 4);
}

TEST(Work, AdamWReadsFourAndWritesThreeNumbersPerParameter) {
  Piece piece{
      .name = "p",
      .tensors = {{"g", {1, 100}}, {"metrics", {1, 4}, DType::kF64}, {"w", {1, 100}}, {"m", {1, 100}}, {"v", {1, 100}}},
      .ops = {}};
  const AdamW op{whole(piece, 0), whole(piece, 1), whole(piece, 2), whole(piece, 3), whole(piece, 4)};
  EXPECT_EQ(work_of(op, piece).bytes.value, 7 * 4 * 100 + 8 * 4);
  EXPECT_EQ(work_of(op, piece).flops.value, 0);
}

TEST(Work, CommunicationAndFreeHaveNone) {
  const Piece piece{.name = "p", .tensors = {{"x", {4, 4}}}, .ops = {}};
  const View x = whole(piece, 0);
  for (const Op& op : {Op(Send{x}), Op(Recv{x}), Op(Free{0}), Op(Collective{.src = x, .dst = x})})
    EXPECT_EQ(work_of(op, piece).bytes.value + work_of(op, piece).flops.value, 0);
}

TEST(Traffic, BytesSentFollowFromTheAlgorithm) {
  using enum CollectiveKind;
  const Bytes n{1200};
  EXPECT_EQ(bytes_sent(kAllGather, Algorithm::kRing, n, 4).value, 900);      // 3/4 n
  EXPECT_EQ(bytes_sent(kReduceScatter, Algorithm::kRing, n, 4).value, 900);  // 3/4 n
  EXPECT_EQ(bytes_sent(kAllReduce, Algorithm::kRing, n, 4).value, 1800);     // 2 * 3/4 n
  EXPECT_EQ(bytes_sent(kAllReduce, Algorithm::kDirect, n, 4).value, 3600);   // 3 n
  for (const auto kind : {kAllGather, kReduceScatter, kAllReduce})
    EXPECT_EQ(bytes_sent(kind, Algorithm::kRing, n, 1).value, 0);
}

TEST(Traffic, BufferIsTheGatheredOrTheUnreducedArray) {
  const Piece piece{.name = "p", .tensors = {{"part", {2, 8}}, {"whole", {8, 8}}}, .ops = {}};
  const View part = whole(piece, 0), all = whole(piece, 1);
  const MeshShape mesh{4, 2, 1};
  const Collective gather{.kind = CollectiveKind::kAllGather, .group = Group::kDp, .src = part, .dst = all};
  const Collective scatter{.kind = CollectiveKind::kReduceScatter, .group = Group::kDp, .src = all, .dst = part};
  const Collective sum{
      .kind = CollectiveKind::kAllReduce, .group = Group::kPp, .algorithm = Algorithm::kDirect, .src = all, .dst = all};
  EXPECT_EQ(buffer_bytes(gather, piece, mesh).value, 256);
  EXPECT_EQ(buffer_bytes(scatter, piece, mesh).value, 256);
  EXPECT_EQ(bytes_sent(gather, piece, mesh).value, 192);
  EXPECT_EQ(bytes_sent(scatter, piece, mesh).value, 192);
  EXPECT_EQ(bytes_sent(sum, piece, mesh).value, 256);
  EXPECT_EQ(bytes_sent(Send{part}, piece, mesh).value, 64);
  EXPECT_EQ(bytes_sent(Recv{part}, piece, mesh).value, 0);
  EXPECT_EQ(bytes_sent(Activation{.in = all, .out = all}, piece, mesh).value, 0);
}

// ---- workspace --------------------------------------------------------------------------------------------

TEST(Workspace, MemoryIsUsedAgainAfterAFree) {
  // a and b live together, c comes after a: 64 + 128 bytes, c in a's place
  Piece piece{.name = "p", .tensors = {{"a", {1, 10}}, {"b", {1, 32}}, {"c", {1, 16}}}, .ops = {}};
  const View a = whole(piece, 0), b = whole(piece, 1), c = whole(piece, 2);
  piece.ops = {Fill{a}, Fill{b}, Free{0}, Fill{c}, Free{1}, Free{2}};
  place_workspace(piece);
  EXPECT_EQ(piece.tensors[0].offset, 0);
  EXPECT_EQ(piece.tensors[1].offset, 64);
  EXPECT_EQ(piece.tensors[2].offset, 0);
  EXPECT_EQ(piece.workspace_bytes, 64 + 128);
}

TEST(Workspace, MistakesInLifetimesAreRefused) {
  const auto refused = [](std::vector<Op> ops, Frame frame = Frame::kWorkspace) -> std::string {
    Piece piece{.name = "p", .tensors = {{"a", {1, 4}, DType::kF32, frame}}, .ops = std::move(ops)};
    try {
      place_workspace(piece);
    } catch (const std::logic_error& e) {
      return e.what();
    }
    return "";
  };
  const View a{0, 1, 4, 4, 0};
  EXPECT_EQ(refused({Fill{a}, Free{0}}), "");
  EXPECT_EQ(refused({Fill{a}}), "p: a is never freed");
  EXPECT_EQ(refused({}), "p: a is never written");
  EXPECT_EQ(refused({Free{0}}), "p: a is freed before it is written");
  EXPECT_EQ(refused({Fill{a}, Free{0}, Free{0}}), "p: a is freed twice");
  EXPECT_EQ(refused({Sigmoid{a}, Free{0}}), "p: sigmoid reads a before anything is written to it");
  EXPECT_EQ(refused({Fill{a}, Free{0}, Fill{a}}), "p: fill uses a after it was freed");
  EXPECT_EQ(refused({Fill{a}, Free{0}}, Frame::kX), "p: a is freed, but lies outside the workspace");
}

TEST(Workspace, LivingTensorsNeverOverlapAndTheSameLivesGiveTheSamePlaces) {
  EXPECT_TRUE(rc::check([] {
    // Random lives: each step bears the next tensor or frees a living one.
    const auto sizes = *rc::gen::nonEmpty(rc::gen::container<std::vector<int>>(rc::gen::inRange(1, 300)));
    Piece piece{.name = "p", .tensors = {}, .ops = {}};
    std::vector<TensorId> living;
    const auto free_one = [&](std::size_t i) {
      piece.ops.emplace_back(Free{living[i]});
      living.erase(living.begin() + static_cast<std::ptrdiff_t>(i));
    };
    for (const int size : sizes) {
      while (!living.empty() && *rc::gen::inRange(0, 3) == 0)
        free_one(*rc::gen::inRange<std::size_t>(0, living.size()));
      const auto id = static_cast<TensorId>(piece.tensors.size());
      piece.tensors.push_back({"t", {1, size}});
      piece.ops.emplace_back(Fill{View{id, 1, size, size, 0}});
      living.push_back(id);
    }
    while (!living.empty()) free_one(0);
    Piece again = piece;
    place_workspace(piece);
    place_workspace(again);

    std::int64_t sum = 0;
    std::set<TensorId> alive;
    for (const Op& op : piece.ops) {
      if (const auto* free = std::get_if<Free>(&op)) {
        alive.erase(free->tensor);
        continue;
      }
      const TensorId id = std::get<Fill>(op).x.tensor;
      const Tensor& t = piece.tensors[id];
      RC_ASSERT(t.offset % 64 == 0);
      RC_ASSERT(t.offset + t.bytes() <= piece.workspace_bytes);
      RC_ASSERT(t.offset == again.tensors[id].offset);
      for (const TensorId other : alive) {
        const Tensor& o = piece.tensors[other];
        RC_ASSERT(t.offset + t.bytes() <= o.offset || o.offset + o.bytes() <= t.offset);
      }
      alive.insert(id);
      sum += (t.bytes() + 63) / 64 * 64;
    }
    RC_ASSERT(piece.workspace_bytes <= sum);
  }));
}

TEST(ByteRanges, AgreeWithASetOfBytes) {
  EXPECT_TRUE(rc::check([] {
    ByteRanges ranges;
    std::set<std::int64_t> bytes;
    for (int i = *rc::gen::inRange(0, 12); i > 0; --i) {
      const auto begin = *rc::gen::inRange<std::int64_t>(0, 40), end = begin + *rc::gen::inRange<std::int64_t>(0, 8);
      ranges.add(begin, end);
      for (std::int64_t b = begin; b < end; ++b) bytes.insert(b);
    }
    const auto begin = *rc::gen::inRange<std::int64_t>(0, 48), end = begin + *rc::gen::inRange<std::int64_t>(0, 10);
    std::optional<std::int64_t> gap;
    bool touches = false;
    for (std::int64_t b = end - 1; b >= begin; --b) {
      if (bytes.contains(b))
        touches = true;
      else
        gap = b;
    }
    RC_ASSERT(ranges.first_gap(begin, end) == gap);
    RC_ASSERT(ranges.intersects(begin, end) == touches);
    std::int64_t last = -1;
    for (const auto& [b, e] : ranges.ranges()) {
      RC_ASSERT(b > last && e > b);  // apart, ascending
      last = e;
    }
  }));
}

// ---- text -------------------------------------------------------------------------------------------------

TEST(ProgramText, BriefIsTheScheduleOfAStage) {
  Program program;
  const auto slot = [](Action action, int m) { return Slot{.action = action, .microbatch = m}; };
  program.slots = {slot(Action::kBegin, -1),   slot(Action::kForward, 0),      slot(Action::kSendForward, 0),
                   slot(Action::kForward, 1),  slot(Action::kSendForward, 1),  slot(Action::kRecvBackward, 0),
                   slot(Action::kBackward, 0), slot(Action::kRecvBackward, 1), slot(Action::kBackward, 1),
                   slot(Action::kReduce, -1),  slot(Action::kNorm, -1),        slot(Action::kUpdate, -1)};
  EXPECT_EQ(brief(program), "F0 send F1 send recv B0 recv B1");
}

TEST(ProgramText, OneLinePerOperationWithAddresses) {
  ProgramSet set;
  set.mesh = {2, 1, 1};
  Piece piece{.name = "dense.forward",
              .tensors = {{"x", {6, 4}, DType::kF32, Frame::kX},
                          {"w", {4, 8}, DType::kF32, Frame::kWeights, 64},
                          {"h", {6, 8}, DType::kF32, Frame::kWorkspace}},
              .ops = {}};
  View own = whole(piece, 0);
  own.rows = 3;
  own.own_rows = true;
  piece.ops = {Gemm{.a = whole(piece, 0), .b = whole(piece, 1).columns(2, 6), .c = whole(piece, 2).columns(0, 6)},
               Collective{.kind = CollectiveKind::kAllReduce,
                          .group = Group::kDp,
                          .algorithm = Algorithm::kDirect,
                          .src = whole(piece, 2),
                          .dst = whole(piece, 2),
                          .in_place = true},
               Rope{.x = own, .heads = 2, .head_width = 2, .width = 2}, Free{2}};
  set.pieces.push_back(piece);
  Call call{.piece = 0, .layer = 3, .weights_ring = true, .ring = 1, .weights_turn = 500};
  call.anchor[static_cast<int>(Frame::kX)] = Anchor::kInbox;
  call.base[static_cast<int>(Frame::kWeights)] = 1000;
  call.base[static_cast<int>(Frame::kWorkspace)] = 9000;
  Program program;
  program.chunks = {{"forward", {call}}};
  Slot slot{.action = Action::kForward, .microbatch = 2};
  slot.anchor[static_cast<int>(Anchor::kInbox)] = 7000;
  program.slots = {slot};
  slot.ring = 1;  // the other buffer of the ring
  slot.action = Action::kBackward;
  EXPECT_EQ(to_text(set, program),
            "F2 L3 dense.forward: gemm a=x[6x4]@7000 b=w[4x6]@1572 c=h[6x6]@9000\n"
            "F2 L3 dense.forward: all-reduce dp direct src=h[6x8]@9000 dst=h[6x8]@9000 in_place\n"
            "F2 L3 dense.forward: rope x=x[3x4]@7000+own rows heads=2 head_width=2 width=2 batch=1 "
            "pairing=adjacent theta=10000 scaling=none factor=1 low_freq_factor=1 high_freq_factor=4 "
            "original_positions=0 beta_fast=32 beta_slow=1 truncate attention_factor=1\n"
            "F2 L3 dense.forward: free h\n");
  program.slots = {slot};
  EXPECT_NE(to_text(set, program).find("B2 L3 dense.forward: gemm a=x[6x4]@7000 b=w[4x6]@1072"), std::string::npos);
}

TEST(Program, BytesByClassAreTheSumsOfItsRegions) {
  Program program;
  program.regions = {{"weights", MemoryClass::kParameters, 0, 100},
                     {"stash", MemoryClass::kActivations, 100, 7},
                     {"inbox", MemoryClass::kActivations, 107, 5}};
  const auto bytes = program.bytes_by_class();
  EXPECT_EQ(bytes[static_cast<int>(MemoryClass::kParameters)], 100);
  EXPECT_EQ(bytes[static_cast<int>(MemoryClass::kActivations)], 12);
  EXPECT_EQ(bytes[static_cast<int>(MemoryClass::kWorkspace)], 0);
}

}  // namespace
}  // namespace meshwright
