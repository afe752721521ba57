#include "sim/system_cost_model.h"

#include <algorithm>
#include <vector>

#include "model/program/op_work.h"
#include "sim/compute_cost.h"

namespace meshwright {
namespace {

Bytes message_bytes(const View& message, const Piece& piece) {
  return {message.rows * message.cols * size_of(piece.tensors[message.tensor].dtype)};
}

AxisTraffic traffic_of(const Piece& piece, const MeshShape& mesh) {
  AxisTraffic traffic;
  for (const Op& op : piece.ops) {
    if (const auto* collective = std::get_if<Collective>(&op)) {
      const std::int64_t times = collective->kind == CollectiveKind::kAllReduce ? 2 : 1;
      const Bytes whole = times * buffer_bytes(*collective, piece, mesh);
      switch (collective->group) {
        case Group::kTp:
          traffic.tp += whole;
          break;
        case Group::kDp:
          traffic.dp += whole;
          break;
        case Group::kPp:
        case Group::kPpEnds:
          traffic.pp += whole;
          break;
      }
    } else if (const auto* send = std::get_if<Send>(&op)) {
      traffic.pp += message_bytes(send->x, piece);
    }
  }
  return traffic;
}

}  // namespace

AxisTraffic axis_traffic(const ProgramSet& set) {
  std::vector<AxisTraffic> of_piece;
  for (const Piece& piece : set.pieces) of_piece.push_back(traffic_of(piece, set.mesh));
  AxisTraffic most;
  for (const Program& program : set.stages) {
    std::vector<std::int64_t> slots(program.chunks.size(), 0);
    for (const Slot& slot : program.slots) ++slots[slot.chunk];
    AxisTraffic total;
    for (std::size_t c = 0; c < slots.size(); ++c)
      for (const Call& call : program.chunks[c].calls) {
        total.tp += slots[c] * of_piece[call.piece].tp;
        total.dp += slots[c] * of_piece[call.piece].dp;
        total.pp += slots[c] * of_piece[call.piece].pp;
      }
    most = {std::max(most.tp, total.tp), std::max(most.dp, total.dp), std::max(most.pp, total.pp)};
  }
  return most;
}

SystemCostModel::SystemCostModel(const System& system, const ProgramSet& set)
    : SystemCostModel(system, choose_mapping(system, set.mesh, axis_traffic(set))) {}

Time SystemCostModel::compute(const Op& op, const Piece& piece, const ProgramSet&) const {
  return to_time(compute_time(system_, work_of(op, piece)));
}

Time SystemCostModel::collective(const Collective& op, const Piece& piece, const ProgramSet& set) const {
  return to_time(
      collective_time(system_, mapping_, op.kind, op.algorithm, op.group, buffer_bytes(op, piece, set.mesh)));
}

Time SystemCostModel::point_to_point(const View& message, const Piece& piece, const ProgramSet&) const {
  return to_time(message_time(system_, mapping_, message_bytes(message, piece)));
}

}  // namespace meshwright
