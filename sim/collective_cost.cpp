#include "sim/collective_cost.h"

#include <algorithm>
#include <cassert>
#include <utility>
#include <vector>

namespace meshwright {
namespace {

Seconds at_size(const Curve& seconds, Bytes bytes) {
  const double size = static_cast<double>(bytes.value), largest = seconds.points().back().size;
  return {size > largest ? seconds.points().back().value * size / largest : seconds.at(size)};
}

}  // namespace

int hops_across(const GroupPlacement& group) {
  int hops = 0;
  for (const AxisFactor& f : group.factors) hops += (f.wraps ? f.size / 2 : f.size - 1) * f.stride;
  return hops;
}

double gather_seconds_per_byte(const GroupPlacement& group, BytesPerSecond link) {
  const double members = group.members();
  double slowest = 0;
  for (unsigned set = 1; set < 1u << group.factors.size(); ++set) {
    double spanned = 1, rate = 0;
    for (std::size_t i = 0; i < group.factors.size(); ++i) {
      if ((set >> i & 1) == 0) continue;
      const AxisFactor& f = group.factors[i];
      spanned *= f.size;
      rate += (f.wraps ? 2.0 : 1.0) / f.sharing;
    }
    slowest = std::max(slowest, (spanned - 1) / members / rate);
  }
  return slowest / link.value;
}

Seconds collective_time(const LinkNetwork& network, CollectiveKind kind, Algorithm algorithm,
                        const GroupPlacement& group, Bytes whole) {
  const int members = group.members();
  if (members == 1) return {};
  const Seconds latency = hops_across(group) * 1.0 * network.hop_latency;
  const Seconds transfer{static_cast<double>(whole.value) *
                         gather_seconds_per_byte(group, network.link_efficiency * network.link)};
  if (algorithm == Algorithm::kDirect) return network.collective_overhead + latency + members * 1.0 * transfer;
  const double passes = kind == CollectiveKind::kAllReduce ? 2 : 1;
  return network.collective_overhead + passes * (latency + transfer);
}

Seconds collective_time(const MeasuredNetwork& network, CollectiveKind kind, Algorithm algorithm, int members,
                        Bytes whole) {
  if (members == 1) return {};
  const auto found = network.collectives.find({kind, algorithm, members});
  assert(found != network.collectives.end());
  return at_size(found->second, whole);
}

Seconds collective_time(const System& system, const MeshMapping& mapping, CollectiveKind kind, Algorithm algorithm,
                        Group group, Bytes whole) {
  if (const auto* links = std::get_if<LinkNetwork>(&system.network)) {
    return collective_time(*links, kind, algorithm, mapping.placement(group), whole);
  }
  return collective_time(std::get<MeasuredNetwork>(system.network), kind, algorithm, group_size(mapping.mesh(), group),
                         whole);
}

Seconds message_time(const System& system, const MeshMapping& mapping, Bytes message) {
  if (mapping.mesh().pp == 1) return {};
  if (const auto* network = std::get_if<LinkNetwork>(&system.network)) {
    const Seconds per_hop = network->hop_latency + message / (network->link_efficiency * network->link);
    return network->message_overhead + mapping.stage_hops() * 1.0 * per_hop;
  }
  return at_size(std::get<MeasuredNetwork>(system.network).message, message);
}

MeshMapping choose_mapping(const System& system, const MeshShape& mesh, const AxisTraffic& traffic) {
  const auto time = [&](const MeshMapping& mapping) {
    const auto gather = [&](Group group, Bytes bytes) {
      return collective_time(system, mapping, CollectiveKind::kAllGather, Algorithm::kRing, group, bytes);
    };
    return gather(Group::kTp, traffic.tp) + gather(Group::kDp, traffic.dp) + message_time(system, mapping, traffic.pp);
  };
  std::vector<MeshMapping> all = mappings(system.topology, mesh);
  std::size_t best = 0;
  Seconds least = time(all[0]);
  for (std::size_t i = 1; i < all.size(); ++i) {
    if (const Seconds t = time(all[i]); t < least) {
      least = t;
      best = i;
    }
  }
  return std::move(all[best]);
}

}  // namespace meshwright
