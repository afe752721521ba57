// What an operation costs: the only thing that the simulator asks about hardware.
#pragma once

#include <variant>

#include "model/program/op.h"
#include "model/program/program.h"
#include "model/program/units.h"

namespace meshwright {

// Durations in whole picoseconds, never negative. Pure: the same operation of the same piece always costs the
// same, so that a caller asks once per operation of a piece and not once per instance.
class CostModel {
 public:
  virtual ~CostModel() = default;

  // Of an operation that is not communication. Not asked about Free, which takes no time.
  virtual Time compute(const Op& op, const Piece& piece, const ProgramSet& set) const = 0;
  // From the moment that the last member is ready.
  virtual Time collective(const Collective& op, const Piece& piece, const ProgramSet& set) const = 0;
  // From the moment that sender and receiver are ready, to the neighbouring stage; asked of the send and of
  // the receive.
  virtual Time point_to_point(const View& message, const Piece& piece, const ProgramSet& set) const = 0;

  // False: a device that communicates can't compute. Then collectives and receives run on the compute stream,
  // in program order; a send still runs beside it, as otherwise two stages that send to each other would wait
  // forever.
  virtual bool overlaps_compute() const { return true; }
};

inline bool is_communication(const Op& op) {
  return std::holds_alternative<Collective>(op) || std::holds_alternative<Send>(op) || std::holds_alternative<Recv>(op);
}

// The stream that an operation occupies on this machine: op.h's, unless communication keeps the device from
// computing.
inline Stream occupied_stream(const Op& op, const CostModel& cost) {
  return cost.overlaps_compute() || std::holds_alternative<Send>(op) ? stream_of(op) : Stream::kCompute;
}

// Of any operation.
inline Time duration(const Op& op, const Piece& piece, const ProgramSet& set, const CostModel& cost) {
  if (const auto* collective = std::get_if<Collective>(&op)) return cost.collective(*collective, piece, set);
  if (const auto* send = std::get_if<Send>(&op)) return cost.point_to_point(send->x, piece, set);
  if (const auto* recv = std::get_if<Recv>(&op)) return cost.point_to_point(recv->x, piece, set);
  return std::holds_alternative<Free>(op) ? 0 : cost.compute(op, piece, set);
}

}  // namespace meshwright
