#include "model/program/op.h"

#include <array>
#include <utility>

namespace meshwright {
namespace {

template <std::size_t... I>
constexpr std::array<std::string_view, kOpKinds> names_of_kinds(std::index_sequence<I...>) {
  return {std::variant_alternative_t<I, Op>::kName...};
}
constexpr auto kKindNames = names_of_kinds(std::make_index_sequence<kOpKinds>());

Stream stream_of_group(Group group) {
  switch (group) {
    case Group::kTp:
      return Stream::kTp;
    case Group::kDp:
      return Stream::kDp;
    case Group::kPp:
    case Group::kPpEnds:
      return Stream::kPp;
  }
  return Stream::kPp;
}

}  // namespace

std::string_view kind_name(OpKind kind) { return kKindNames[kind]; }

std::string_view op_name(const Op& op) {
  if (const auto* collective = std::get_if<Collective>(&op)) return name(collective->kind);
  return kind_name(kind_of(op));
}

Stream stream_of(const Op& op) {
  if (const auto* collective = std::get_if<Collective>(&op)) return stream_of_group(collective->group);
  if (const auto* send = std::get_if<Send>(&op))
    return send->to == Direction::kNext ? Stream::kSendNext : Stream::kSendPrevious;
  if (const auto* recv = std::get_if<Recv>(&op))
    return recv->from == Direction::kPrevious ? Stream::kRecvPrevious : Stream::kRecvNext;
  return Stream::kCompute;
}

}  // namespace meshwright
