#include "model/program/verifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <functional>
#include <numeric>

#include "model/families/jaxformer.h"
#include "model/lowering/lower.h"

namespace meshwright {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Two stages of one layer each, two microbatches, written by hand. x: (4, 8) f32, 128 bytes. Arena:
//   0 weights   256 metrics   512 stash   768 inbox   1024 outbox   1280 gradient flow   1536 workspace
// with two entries, one per microbatch, of what is in flight.
constexpr ActivationKind kGelu = ActivationKind::kGeluTanh;
enum PieceIndex { kClear, kEmbed, kForward, kBackward, kLoss, kSendF, kRecvF, kSendB, kRecvB, kSum };
enum ChunkIndex {
  kBeginChunk,
  kForwardChunk,
  kBackwardChunk,
  kSendFChunk,
  kRecvFChunk,
  kSendBChunk,
  kRecvBChunk,
  kSumChunk
};

constexpr std::int64_t kWeights = 0, kMetricsAt = 256, kStashAt = 512, kInboxAt = 768, kOutboxAt = 1024, kFlowAt = 1280,
                       kWorkspaceAt = 1536, kArena = 2048;

View all_of(TensorId t, std::int64_t rows = 4, std::int64_t cols = 8) { return {t, rows, cols, cols, 0}; }

Piece piece(std::string name, std::vector<Tensor> tensors, std::vector<Op> ops) {
  Piece p{.name = std::move(name), .tensors = std::move(tensors), .ops = std::move(ops)};
  place_workspace(p);
  return p;
}

Tensor activation(std::string name, Frame frame) { return {std::move(name), {4, 8}, DType::kF32, frame, 0}; }
const Tensor kMetricsTensor{"metrics", {1, 4}, DType::kF64, Frame::kMetrics, 0};
const Tensor kSumScratch{"recv", {2, 4}, DType::kF64, Frame::kMetrics, 64};

std::vector<Piece> pieces() {
  const View x = all_of(0), metrics = all_of(0, 1, 4);
  const auto message = [&](std::string name, Frame frame, Op op) {
    return piece(std::move(name), {activation("x", frame)}, {std::move(op)});
  };
  return {
      piece("clear", {kMetricsTensor}, {Fill{metrics}}),
      piece("embed", {activation("y", Frame::kXOut)}, {Fill{x}}),
      // h = x w is saved; y = gelu(gelu(h))
      piece("layer.forward",
            {activation("x", Frame::kX),
             {"w", {8, 8}, DType::kF32, Frame::kWeights, 0},
             activation("h", Frame::kStash),
             activation("t", Frame::kWorkspace),
             activation("y", Frame::kXOut)},
            {Gemm{.a = all_of(0), .b = all_of(1, 8, 8), .c = all_of(2)}, Activation{kGelu, all_of(2), all_of(3)},
             Activation{kGelu, all_of(3), all_of(4)}, Free{3}}),
      piece("layer.backward",
            {activation("x", Frame::kX), activation("h", Frame::kStash), activation("d", Frame::kD),
             activation("t", Frame::kWorkspace), activation("u", Frame::kWorkspace)},
            {Activation{kGelu, all_of(1), all_of(3)}, Activation{kGelu, all_of(0), all_of(4)},
             ActivationBackward{kGelu, all_of(3), all_of(2)}, ActivationBackward{kGelu, all_of(4), all_of(2)}, Free{3},
             Free{4}}),
      piece("loss", {activation("x", Frame::kX), activation("d", Frame::kD)},
            {Activation{kGelu, all_of(0), all_of(1)}}),
      message("send.forward", Frame::kXOut, Send{x, Direction::kNext}),
      message("recv.forward", Frame::kXOut, Recv{x, Direction::kPrevious}),
      message("send.backward", Frame::kD, Send{x, Direction::kPrevious}),
      message("recv.backward", Frame::kD, Recv{x, Direction::kNext}),
      piece("sum", {kMetricsTensor, kSumScratch},
            {Collective{.kind = CollectiveKind::kAllReduce,
                        .group = Group::kPp,
                        .algorithm = Algorithm::kDirect,
                        .src = metrics,
                        .dst = metrics,
                        .scratch = all_of(1, 2, 4),
                        .in_place = true}}),
  };
}

Call call(int piece, Anchor in = Anchor::kInbox) {
  Call c{.piece = piece};
  const auto set = [&](Frame frame, std::int64_t base, Anchor anchor) {
    c.base[static_cast<int>(frame)] = base;
    c.anchor[static_cast<int>(frame)] = anchor;
  };
  set(Frame::kWeights, kWeights, Anchor::kFixed);
  set(Frame::kMetrics, kMetricsAt, Anchor::kFixed);
  set(Frame::kWorkspace, kWorkspaceAt, Anchor::kFixed);
  set(Frame::kStash, 0, Anchor::kStash);
  set(Frame::kX, 0, in);
  set(Frame::kXOut, 0, piece == kEmbed || piece == kRecvF ? Anchor::kInbox : Anchor::kOutbox);
  set(Frame::kD, 0, Anchor::kGradientFlow);
  return c;
}

Slot slot(Action action, int m, int chunk, int buffer) {
  Slot s{.action = action, .microbatch = m, .chunk = chunk};
  s.anchor = {0, kStashAt + 128 * buffer, kInboxAt + 128 * buffer, kOutboxAt + 128 * buffer, kFlowAt + 128 * buffer, 0};
  return s;
}
Slot f(int m) { return slot(Action::kForward, m, kForwardChunk, m); }
Slot b(int m) { return slot(Action::kBackward, m, kBackwardChunk, m); }
Slot send_f(int m) { return slot(Action::kSendForward, m, kSendFChunk, m); }
Slot recv_f(int m) { return slot(Action::kRecvForward, m, kRecvFChunk, m); }
Slot send_b(int m) { return slot(Action::kSendBackward, m, kSendBChunk, m); }
Slot recv_b(int m) { return slot(Action::kRecvBackward, m, kRecvBChunk, m); }
Slot begin() { return slot(Action::kBegin, -1, kBeginChunk, 0); }
Slot sum() { return slot(Action::kReduce, -1, kSumChunk, 0); }

// The last stage's loss is in its backward; its outbox holds the head's input.
ProgramSet two_stages() {
  ProgramSet set;
  set.mesh = {1, 2, 1};
  set.step = {.sequences = 2, .tokens = 4, .microbatch = 1, .microbatches = 2};
  set.pieces = pieces();
  for (int s = 0; s < 2; ++s) {
    Program p;
    p.stage = p.first_layer = s;
    p.layers = 1;
    p.chunks = {{"begin", {call(kClear)}},
                {"forward", s == 0 ? std::vector{call(kEmbed), call(kForward)} : std::vector{call(kForward)}},
                {"backward",
                 s == 1 ? std::vector{call(kLoss, Anchor::kOutbox), call(kBackward)} : std::vector{call(kBackward)}},
                {"send forward", {call(kSendF)}},
                {"receive forward", {call(kRecvF)}},
                {"send backward", {call(kSendB)}},
                {"receive backward", {call(kRecvB)}},
                {"sum", {call(kSum)}}};
    p.regions = {{"weights", MemoryClass::kParameters, kWeights, 256},
                 {"metrics", MemoryClass::kData, kMetricsAt, 256},
                 {"stash", MemoryClass::kActivations, kStashAt, 256},
                 {"inbox", MemoryClass::kActivations, kInboxAt, 256},
                 {"outbox", MemoryClass::kBuffers, kOutboxAt, 256},
                 {"flow", MemoryClass::kBuffers, kFlowAt, 256},
                 {"workspace", MemoryClass::kWorkspace, kWorkspaceAt, kArena - kWorkspaceAt}};
    p.arena_bytes = kArena;
    set.stages.push_back(std::move(p));
  }
  set.stages[0].slots = {begin(), f(0), send_f(0), f(1), send_f(1), recv_b(0), b(0), recv_b(1), b(1), sum()};
  set.stages[1].slots = {begin(), recv_f(0), f(0), b(0), send_b(0), recv_f(1), f(1), b(1), send_b(1), sum()};
  return set;
}

template <class F>
std::vector<std::string> faults_after(F&& change) {
  ProgramSet set = two_stages();
  change(set);
  return verify(set);
}

// Positions in the slots of two_stages().
enum Stage0 { kF0 = 1, kSend0, kF1, kSend1, kRecvB0, kB0, kRecvB1, kB1, kSum0 };
enum Stage1 { kRecvF0 = 1, kLastF0, kLastB0, kSendB0, kRecvF1, kLastF1, kLastB1, kSendB1, kSum1 };

std::int64_t& anchor(Slot& s, Anchor a) { return s.anchor[static_cast<int>(a)]; }
template <class T>
void drop(std::vector<T>& v, int i) {
  v.erase(v.begin() + i);
}

TEST(Verifier, FindsNothingInTwoStagesWrittenByHand) {
  EXPECT_THAT(verify(two_stages()), IsEmpty());
  EXPECT_EQ(brief(two_stages().stages[0]), "F0 send F1 send recv B0 recv B1");
  EXPECT_EQ(brief(two_stages().stages[1]), "recv F0 B0 send recv F1 B1 send");
}

TEST(Verifier, OneOutboxIsEnoughWhenTheFirstMessageIsReceivedBeforeItIsWrittenAgain) {
  EXPECT_THAT(faults_after([](ProgramSet& set) {
                for (const int i : {kF1, kSend1}) anchor(set.stages[0].slots[i], Anchor::kOutbox) = kOutboxAt;
              }),
              IsEmpty());
}

// ---- faults of a piece ------------------------------------------------------------------------------------

struct Mutation {
  const char* name;
  std::function<void(ProgramSet&)> change;
  const char* fault;  // a part of one of the sentences
};
void PrintTo(const Mutation& m, std::ostream* out) { *out << m.name; }

class VerifierFinds : public ::testing::TestWithParam<Mutation> {};

TEST_P(VerifierFinds, TheFault) { EXPECT_THAT(faults_after(GetParam().change), Contains(HasSubstr(GetParam().fault))); }

std::string name_of(const ::testing::TestParamInfo<Mutation>& info) { return info.param.name; }

const std::vector<Mutation> kPieceMutations{
    {"AMissingFree", [](ProgramSet& s) { s.pieces[kForward].ops.pop_back(); }, "piece layer.forward: t is never freed"},
    {"AFreeTooMany", [](ProgramSet& s) { s.pieces[kForward].ops.emplace_back(Free{3}); },
     "piece layer.forward, operation 4 (free): t is freed twice"},
    {"AFreeOfAnotherFrame", [](ProgramSet& s) { s.pieces[kForward].ops.emplace_back(Free{0}); },
     "x lies outside the workspace"},
    {"AUseAfterFree", [](ProgramSet& s) { std::swap(s.pieces[kForward].ops[2], s.pieces[kForward].ops[3]); },
     "piece layer.forward, operation 3 (activation): uses t after it was freed"},
    {"AReadBeforeTheWrite", [](ProgramSet& s) { drop(s.pieces[kForward].ops, 1); },
     "piece layer.forward, operation 1 (activation): reads t before it is written"},
    {"AReadOfMoreThanWasWritten",
     [](ProgramSet& s) { std::get<Activation>(s.pieces[kForward].ops[1]).out = all_of(3).columns(0, 7); },
     "piece layer.forward, operation 2 (activation): reads part of t before it is written"},
    {"AReadOfAnOutputThatIsNotYetThere",
     [](ProgramSet& s) { std::get<Activation>(s.pieces[kForward].ops[1]).in = all_of(4); },
     "reads y before it is written"},
    {"RowsApartWhereTheyMustFollowEachOther",
     [](ProgramSet& s) { std::get<Activation>(s.pieces[kForward].ops[1]).out = all_of(3).columns(0, 7); },
     "out: rows of 7 columns lie 8 apart"},
    {"AViewBeyondItsTensor", [](ProgramSet& s) { std::get<Activation>(s.pieces[kForward].ops[1]).in.offset = 1; },
     "in, 4 x 8 from element 1 with rows 8 apart, is not within h (4, 8)"},
    {"AViewOfNoTensor", [](ProgramSet& s) { std::get<Activation>(s.pieces[kForward].ops[1]).in.tensor = 9; },
     "in names tensor 9 of 5"},
    {"InnerExtentsThatDisagree", [](ProgramSet& s) { std::get<Gemm>(s.pieces[kForward].ops[0]).b = all_of(1, 7, 8); },
     "piece layer.forward, operation 0 (gemm): (4 x 8) (7 x 8) does not give 4 x 8"},
    {"ABiasOfAnotherWidth", [](ProgramSet& s) { std::get<Gemm>(s.pieces[kForward].ops[0]).bias = all_of(1, 1, 7); },
     "bias has 7 elements for 8 columns"},
    {"LivingTensorsThatOverlap", [](ProgramSet& s) { s.pieces[kBackward].tensors[4].offset = 64; },
     "piece layer.backward, operation 1 (activation): u lies over t, which still lives"},
    {"AWorkspaceThatIsTooSmall", [](ProgramSet& s) { s.pieces[kBackward].workspace_bytes = 128; },
     "its workspace has 128 bytes, but its tensors need 256"},
    {"ACollectiveWithoutCompany", [](ProgramSet& s) { std::get<Collective>(s.pieces[kSum].ops[0]).group = Group::kDp; },
     "piece sum, operation 0 (all-reduce): its group, dp, has one member"},
    {"PartsThatDoNotGiveTheWhole",
     [](ProgramSet& s) {
       s.mesh.dp = 2;
       s.pieces.push_back({.name = "gather",
                           .tensors = {kMetricsTensor, kSumScratch},
                           .ops = {Collective{.group = Group::kDp, .src = all_of(0, 1, 3), .dst = all_of(1, 2, 4)}}});
     },
     "piece gather, operation 0 (all-gather): 2 parts of 3 elements do not give 8"},
};
INSTANTIATE_TEST_SUITE_P(InAPiece, VerifierFinds, ::testing::ValuesIn(kPieceMutations), name_of);

// ---- faults of a stage ------------------------------------------------------------------------------------

const std::vector<Mutation> kStageMutations{
    {"RegionsThatOverlap", [](ProgramSet& s) { s.stages[0].regions[2].bytes += 1; },
     "stage 0, region inbox lies over region stash"},
    {"ARegionBeyondTheArena", [](ProgramSet& s) { s.stages[0].arena_bytes -= 1; },
     "region workspace: [1536, 2048) is not within the arena"},
    {"AFixedFrameOutsideEveryRegion",
     [](ProgramSet& s) {
       s.stages[1].chunks[kForwardChunk].calls[0].base[static_cast<int>(Frame::kWorkspace)] = kArena - 64;
     },
     "stage 1, chunk forward, layer.forward: frame ws, [1984, 2112), is not within a region"},
    {"AnEntryOutsideEveryRegion", [](ProgramSet& s) { anchor(s.stages[0].slots[kF1], Anchor::kOutbox) = kArena; },
     "stage 0, slot 3 (F1): its outbox entry, [2048, 2176), is not within a region"},
    {"EntriesThatOverlap", [](ProgramSet& s) { anchor(s.stages[0].slots[kF1], Anchor::kStash) = kStashAt + 64; },
     "stage 0, stash entry [576, 704) lies over stash entry [512, 640)"},
    {"WeightsOverMetrics",
     [](ProgramSet& s) {
       for (Call& c : s.stages[0].chunks[kForwardChunk].calls) c.base[static_cast<int>(Frame::kWeights)] = kMetricsAt;
     },
     "stage 0, weights [256, 512) lies over metrics [256, 384)"},
    {"AStashThatIsStillNeeded", [](ProgramSet& s) { anchor(s.stages[0].slots[kF1], Anchor::kStash) = kStashAt; },
     "stage 0, slot 6 (B0): reads stash entry 512, which holds microbatch 1, written by slot 3 (F1)"},
    {"AnInboxThatIsStillNeeded", [](ProgramSet& s) { anchor(s.stages[0].slots[kF1], Anchor::kInbox) = kInboxAt; },
     "stage 0, slot 6 (B0): reads inbox entry 768, which holds microbatch 1, written by slot 3 (F1)"},
    {"AnInboxThatNothingWasReceivedInto",
     [](ProgramSet& s) { anchor(s.stages[1].slots[kLastF0], Anchor::kInbox) = kInboxAt + 128; },
     "stage 1, slot 2 (F0): reads inbox entry 896, which nothing has written"},
    {"AnOutboxWrittenAgainBeforeItIsSent",
     [](ProgramSet& s) {
       for (const int i : {kF1, kSend1}) anchor(s.stages[0].slots[i], Anchor::kOutbox) = kOutboxAt;
       std::swap(s.stages[0].slots[kSend0], s.stages[0].slots[kF1]);
     },
     "stage 0, slot 3 (send F0): reads outbox entry 1024, which holds microbatch 1, written by slot 2 (F1)"},
    {"AGradientOfAnotherMicrobatch",
     [](ProgramSet& s) { anchor(s.stages[0].slots[kB1], Anchor::kGradientFlow) = kFlowAt; },
     "stage 0, slot 8 (B1): reads gradient flow entry 1280, which holds microbatch 0, written by slot 6 "
     "(B0)"},
    {"AStashThatForwardDoesNotFill",
     [](ProgramSet& s) {
       s.pieces[kForward].tensors[2].shape = {2, 8};
       std::get<Gemm>(s.pieces[kForward].ops[0]).a.rows = std::get<Gemm>(s.pieces[kForward].ops[0]).c.rows = 2;
       std::get<Activation>(s.pieces[kForward].ops[1]).in.rows = 2;
     },
     "stage 0, slot 6 (B0): reads byte 64 of its stash entry, which chunk forward does not write"},
    {"AMissingBackward", [](ProgramSet& s) { drop(s.stages[0].slots, kB1); },
     "stage 0, B1: is there 0 times, not once"},
    {"ASecondForward", [](ProgramSet& s) { s.stages[0].slots.insert(s.stages[0].slots.begin() + kF1, f(0)); },
     "stage 0, F0: is there 2 times, not once"},
    {"ABackwardBeforeItsForward",
     [](ProgramSet& s) { std::swap(s.stages[1].slots[kLastF0], s.stages[1].slots[kLastB0]); },
     "stage 1, slot 2 (B0): comes before F0, slot 3"},
    {"ASendBeforeItsBackward", [](ProgramSet& s) { std::swap(s.stages[1].slots[kSendB0], s.stages[1].slots[kLastB0]); },
     "stage 1, slot 3 (send B0): comes before B0, slot 4"},
    {"AMicrobatchThatDoesNotExist", [](ProgramSet& s) { s.stages[0].slots[kF1].microbatch = 2; },
     "stage 0, slot 3 (F2): there are 2 microbatches"},
    {"AMessageBeyondTheLastStage", [](ProgramSet& s) { s.stages[1].slots.push_back(send_f(0)); },
     "stage 1, slot 10 (send F0): there is no stage for it"},
    {"ASendSlotThatSendsNothing", [](ProgramSet& s) { s.stages[0].slots[kSend0].chunk = kBeginChunk; },
     "stage 0, slot 2 (send F0): its messages are [], not [send next]"},
    {"AChunkThatDoesNotExist", [](ProgramSet& s) { s.stages[0].slots[kF0].chunk = 8; },
     "stage 0, F0: there is no chunk 8"},
    {"APieceThatDoesNotExist", [](ProgramSet& s) { s.stages[0].chunks[0].calls[0].piece = 99; },
     "stage 0, chunk begin: there is no piece 99"},
};
INSTANTIATE_TEST_SUITE_P(InAStage, VerifierFinds, ::testing::ValuesIn(kStageMutations), name_of);

// ---- faults between stages --------------------------------------------------------------------------------

const std::vector<Mutation> kSetMutations{
    {"AStageTooMany", [](ProgramSet& s) { s.mesh.pp = 3; }, "there are 2 programs for 3 stages"},
    {"AMissingReceive", [](ProgramSet& s) { drop(s.stages[1].slots, kRecvF1); },
     "stages 0 and 1: message 1 sent is microbatch 1 (128 bytes), message 1 received is nothing"},
    {"AMissingSend", [](ProgramSet& s) { drop(s.stages[1].slots, kSendB0); },
     "stages 1 and 0: message 0 sent is microbatch 1 (128 bytes), message 0 received is microbatch 0 (128 "
     "bytes)"},
    {"MessagesInAnotherOrder",
     [](ProgramSet& s) {
       s.stages[0].slots = {begin(), f(1), send_f(1), f(0), send_f(0), recv_b(0), b(0), recv_b(1), b(1), sum()};
     },
     "stages 0 and 1: message 0 sent is microbatch 1 (128 bytes), message 0 received is microbatch 0 (128 "
     "bytes)"},
    {"AMessageOfAnotherSize", [](ProgramSet& s) { std::get<Recv>(s.pieces[kRecvF].ops[0]).x.rows = 3; },
     "stages 0 and 1: message 0 sent is microbatch 0 (128 bytes), message 0 received is microbatch 0 (96 "
     "bytes)"},
    {"AMissingCollective", [](ProgramSet& s) { s.stages[1].slots.pop_back(); },
     "stages 0 and 1: collective 0 of pp is all-reduce direct of 32 bytes on the one, nothing on the other"},
    {"AnotherAlgorithm",
     [](ProgramSet& s) {
       Piece ring = s.pieces[kSum];
       std::get<Collective>(ring.ops[0]).algorithm = Algorithm::kRing;
       s.pieces.push_back(ring);
       s.stages[1].chunks[kSumChunk].calls[0].piece = kSum + 1;
     },
     "collective 0 of pp is all-reduce direct of 32 bytes on the one, all-reduce of 32 bytes on the other"},
    {"ADeadlockOfReceives",  // stage 0 waits for a gradient, stage 1 for F1
     [](ProgramSet& s) {
       s.stages[0].slots = {begin(), f(0), send_f(0), recv_b(0), b(0), f(1), send_f(1), recv_b(1), b(1), sum()};
       s.stages[1].slots = {begin(), recv_f(0), f(0), recv_f(1), f(1), b(0), send_b(0), b(1), send_b(1), sum()};
     },
     "deadlock: stage 0 waits in slot 3 (recv B0), stage 1 waits in slot 3 (recv F1)"},
    {"ADeadlockOfACollective",
     [](ProgramSet& s) {
       drop(s.stages[0].slots, kSum0);
       s.stages[0].slots.insert(s.stages[0].slots.begin() + kSend1, sum());
     },
     "deadlock: stage 0 waits in slot 4 (reduce), stage 1 waits in slot 5 (recv F1)"},
    {"ADeadlockOfABufferThatIsStillBeingSent",  // which the collective keeps from being received
     [](ProgramSet& s) {
       for (const int i : {kF1, kSend1}) anchor(s.stages[0].slots[i], Anchor::kOutbox) = kOutboxAt;
       s.stages[0].slots.insert(s.stages[0].slots.begin() + kSend1, sum());
       s.stages[1].slots.insert(s.stages[1].slots.begin() + kRecvF0, sum());
     },
     "deadlock: stage 0 waits in slot 3 (F1), stage 1 waits in slot 1 (reduce)"},
};
INSTANTIATE_TEST_SUITE_P(BetweenStages, VerifierFinds, ::testing::ValuesIn(kSetMutations), name_of);

// ---- lowered programs -------------------------------------------------------------------------------------

ModelSpec tiny_model() {
  return jaxformer("tiny",
                   {.model_dimension = 32,
                    .vocab_size = 64,
                    .n_head = 4,
                    .blocks = 2,
                    .layers_per_block = 2,
                    .latent_dim = 8,
                    .dhR = 4,
                    .dropout_rate = 0.1,
                    .k = 2,
                    .n_experts = 4,
                    .n_shared = 2,
                    .capacity_factor = 1.5},
                   0.01);
}
constexpr TrainingShape kTinyShape{.sequences = 16, .tokens = 16};

TEST(VerifierOfLoweredPrograms, FindsNothingOverAGridOfPlans) {
  ModelSpec model = tiny_model();
  int plans = 0, balanced_over_the_step = 0;
  for (const DType compute : {DType::kF32, DType::kBF16})
    for (const Recompute recompute : {Recompute::kNone, Recompute::kFull})
      for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B})
        for (const int microbatches : {1, 2, 4})
          for (int fsdp = 0; fsdp <= 3; ++fsdp)
            for (const int dp : {1, 2, 4})
              for (const int pp : {1, 2, 3, 4})
                for (const int tp : {1, 2, 4}) {
                  const Plan plan{{dp, pp, tp}, fsdp, microbatches, schedule, recompute};
                  TrainingShape shape = kTinyShape;
                  shape.compute = compute;
                  if (!illegalities(model, shape, plan).empty()) continue;
                  ASSERT_THAT(verify(lower(model, shape, plan)), IsEmpty()) << to_text(plan) << " " << name(compute);
                  ++plans;
                  if (compute != DType::kBF16) continue;
                  for (const Balance balance : {Balance::kLayer, Balance::kPooled}) {
                    model.balance = balance;
                    if (unbalanced(model, schedule, microbatches)) continue;
                    ASSERT_THAT(verify(lower(model, shape, plan)), IsEmpty()) << to_text(plan) << " " << name(balance);
                    ++balanced_over_the_step;
                  }
                  model.balance = Balance::kSequence;
                }
  EXPECT_EQ(plans, 2592);  // 2 * 2 * 2 * 3 * (12 meshes with dp 1, and 24 with dp 2 or 4 at 4 stages of FSDP)
  EXPECT_EQ(balanced_over_the_step,
            1296);  // 2 * 108 * (4 pairs of schedule and microbatches of a layer, 2 of all layers)
}

bool is_scheduled(const Slot& s) { return s.action != Action::kBegin && s.action < Action::kReduce; }

TEST(VerifierOfLoweredPrograms, FindsARandomMutation) {
  const ModelSpec model = tiny_model();
  EXPECT_TRUE(rc::check([&model] {
    const Plan plan{{2, *rc::gen::element(2, 4), *rc::gen::element(1, 2)},
                    *rc::gen::element(0, 1, 2, 3),
                    *rc::gen::element(2, 4),
                    *rc::gen::element(Schedule::kGPipe, Schedule::k1F1B)};
    ProgramSet set = lower(model, kTinyShape, plan);
    RC_ASSERT(verify(set).empty());
    std::vector<int> stages(static_cast<std::size_t>(plan.mesh.pp));
    std::iota(stages.begin(), stages.end(), 0);
    std::vector<Slot>& slots = set.stages[*rc::gen::elementOf(stages)].slots;
    std::vector<int> scheduled;
    for (int i = 0; i < static_cast<int>(slots.size()); ++i)
      if (is_scheduled(slots[i])) scheduled.push_back(i);
    const int i = *rc::gen::elementOf(scheduled);
    std::vector<int> with_workspace;
    for (int p = 0; p < static_cast<int>(set.pieces.size()); ++p)
      if (set.pieces[p].workspace_bytes > 0) with_workspace.push_back(p);
    Piece& layer = set.pieces[*rc::gen::elementOf(with_workspace)];

    const int mutation = *rc::gen::element(0, 1, 2, 3, 4);
    if (mutation == 0) {
      RC_TAG("a slot is dropped");
      drop(slots, i);
    } else if (mutation == 1) {
      RC_TAG("two slots of a microbatch are swapped");
      std::vector<int> others;
      for (const int j : scheduled)
        if (j != i && slots[j].microbatch == slots[i].microbatch) others.push_back(j);
      std::swap(slots[i], slots[*rc::gen::elementOf(others)]);
    } else if (mutation == 2) {
      RC_TAG("a Free is dropped");
      std::vector<int> frees;
      for (int op = 0; op < static_cast<int>(layer.ops.size()); ++op)
        if (std::holds_alternative<Free>(layer.ops[op])) frees.push_back(op);
      drop(layer.ops, *rc::gen::elementOf(frees));
    } else if (mutation == 3) {
      RC_TAG("an operation that is the first to write a temporary is dropped");
      std::vector<int> first_writers;
      std::vector<bool> seen(layer.tensors.size());
      for (int op = 0; op < static_cast<int>(layer.ops.size()); ++op)
        for_each_operand(layer.ops[op], [&](std::string_view, const View& v, Access) {
          if (layer.tensors[v.tensor].frame == Frame::kWorkspace && !seen[v.tensor]) first_writers.push_back(op);
          seen[v.tensor] = true;
        });
      drop(layer.ops, *rc::gen::elementOf(first_writers));
    } else {
      RC_TAG("a microbatch's buffer moves by some bytes in one slot");
      const Action action = slots[i].action;
      const Anchor a = action == Action::kForward || action == Action::kBackward ? Anchor::kStash
                       : action == Action::kSendForward                          ? Anchor::kOutbox
                       : action == Action::kRecvForward                          ? Anchor::kInbox
                                                                                 : Anchor::kGradientFlow;
      anchor(slots[i], a) += *rc::gen::element(-64, 64, 128, 4096);
    }
    RC_ASSERT(!verify(set).empty());
  }));
}

// Every tensor of every piece, one at a time: whoever computes with it meets a dtype that is not its own.
TEST(VerifierOfLoweredPrograms, FindsEveryTensorWhoseDtypeIsNotItsOwn) {
  TrainingShape shape = kTinyShape;
  shape.compute = DType::kBF16;
  const ProgramSet set = lower(tiny_model(), shape, {{2, 2, 2}, 1, 2, Schedule::k1F1B, Recompute::kNone});
  ASSERT_THAT(verify(set), IsEmpty());
  int found = 0;
  for (std::size_t p = 0; p < set.pieces.size(); ++p)
    for (std::size_t t = 0; t < set.pieces[p].tensors.size(); ++t) {
      // Messages, clearings and conversions are of any type.
      const bool computed_with = std::ranges::any_of(set.pieces[p].ops, [&](const Op& op) {
        if (std::holds_alternative<Fill>(op) || std::holds_alternative<Cast>(op) || std::holds_alternative<Send>(op) ||
            std::holds_alternative<Recv>(op))
          return false;
        bool mentioned = false;
        for_each_operand(
            op, [&](std::string_view, const View& v, Access) { mentioned |= v.tensor == static_cast<TensorId>(t); });
        return mentioned;
      });
      if (!computed_with) continue;
      ProgramSet mutant = set;
      Tensor& tensor = mutant.pieces[p].tensors[t];
      tensor.dtype = tensor.dtype == DType::kI32 ? DType::kF32 : DType::kI32;
      ++found;
      EXPECT_THAT(verify(mutant), Not(IsEmpty())) << mutant.pieces[p].name << " " << tensor.name;
    }
  EXPECT_GT(found, 200);
}

TEST(VerifierOfLoweredPrograms, FindsWeightsAndGradientsInTheWrongBufferOfARing) {
  const ProgramSet set = lower(tiny_model(), kTinyShape, {.mesh = {2, 1, 1}, .fsdp = 3, .microbatches = 2});
  ASSERT_THAT(verify(set), IsEmpty());
  int changed = 0;
  for (std::size_t chunk = 0; chunk < set.stages[0].chunks.size(); ++chunk)
    for (std::size_t i = 0; i < set.stages[0].chunks[chunk].calls.size(); ++i) {
      const Call& c = set.stages[0].chunks[chunk].calls[i];
      const std::string& piece = set.pieces[c.piece].name;
      if (!c.weights_ring || !(piece.ends_with(".gather") || piece.ends_with(".forward") || piece.ends_with(".reduce")))
        continue;
      ProgramSet mutant = set;
      mutant.stages[0].chunks[chunk].calls[i].ring ^= 1;
      EXPECT_THAT(verify(mutant), Contains(HasSubstr("ring buffer"))) << piece;
      ++changed;
    }
  EXPECT_EQ(changed, 4 * 2 + 2 * 4 * 2);  // 4 layers: gather and forward; twice gather and reduce
}

TEST(VerifierOfLoweredPrograms, FindsGradientsThatAreNeverReduced) {
  ProgramSet set = lower(tiny_model(), kTinyShape, {.mesh = {2, 1, 1}, .fsdp = 2, .microbatches = 2});
  for (Chunk& chunk : set.stages[0].chunks)
    if (chunk.name == "backward")
      std::erase_if(chunk.calls, [&](const Call& c) { return set.pieces[c.piece].name.ends_with(".reduce"); });
  EXPECT_THAT(verify(set), Contains(HasSubstr("before they are reduced")));
}

}  // namespace
}  // namespace meshwright
