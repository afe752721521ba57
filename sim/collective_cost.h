// Time of one collective or message on an otherwise idle network, as pure functions.
//   V  bytes of the whole (gathered, or unreduced) array of one group
//   N  members of the group
//   w  one-way bytes/s of a link
// All groups of the axis run at the same time (every rank runs the same program), so groups that share links
// share their bandwidth. Not for: other traffic on the same links.
#pragma once

#include "model/program/mesh.h"
#include "model/program/op.h"
#include "model/program/units.h"
#include "sim/mesh_mapping.h"
#include "sim/system.h"

namespace meshwright {

// Hops of the longest way between two members, all factors one after another: size/2 steps on a ring, size-1
// on a line, each of `stride` hops.
int hops_across(const GroupPlacement& group);

// Seconds per byte of V to all-gather (or reduce-scatter, its transpose) at link rate w:
//
//   max over non-empty sets S of factors of   (n_S - 1)/N / (w * r_S)
//       n_S = product of the sizes in S,   r_S = sum over S of ports / sharing,   ports = wraps ? 2 : 1
//
// A plane of N/n_S members that differ outside S only must receive, over links along S, what it does not
// hold: V (1 - 1/n_S). A member at the end of an open line has one link along it, on a ring two; as `sharing`
// groups use each link, it has 1/sharing of it. The largest of these bounds is reached: walking
// the factors in one order loads the links along each by one corner of the region that the bounds leave, and
// splitting the array over orders mixes corners.
//
// All factors together give the bounds of an open mesh of d dimensions, V(N-1)/(N d w), and of a torus,
// V(N-1)/(N 2d w); with steps of one hop these are the largest. 0 for one member.
// Assumption: perfectly pipelined, every order of walking available.
// Source: rings: How to Scale Your Model, sharding.md; open lines, meshes and strides: derived, as above.
double gather_seconds_per_byte(const GroupPlacement& group, BytesPerSecond link);

// All-gather and reduce-scatter:  fixed + hops * hop latency + V * gather_seconds_per_byte(efficiency * w)
// All-reduce by rings is a reduce-scatter and an all-gather in one operation: the last two terms twice.
// All-reduce kDirect, each member sends its V to every other:
//                                 fixed + hops * hop latency + N V * gather_seconds_per_byte(efficiency * w)
//   (it receives N-1 arrays of V, as in an all-gather of an array of N V).
// fixed, hop latency, w and efficiency: of the system's file, with their sources. 0 for one member.
Seconds collective_time(const LinkNetwork& network, CollectiveKind kind, Algorithm algorithm,
                        const GroupPlacement& group, Bytes whole);

// From measurements: the time of this kind, algorithm and number of members at V, on a line in log(V) and
// log(seconds) between measured sizes; below the smallest its time (latency), above the largest its bytes/s.
// Precondition: that number of members was measured (load_system checks all that a mesh can ask for).
Seconds collective_time(const MeasuredNetwork& network, CollectiveKind kind, Algorithm algorithm, int members,
                        Bytes whole);

// Either of the two, as the system has it; the group lies where the mapping puts it. 0 for one member.
Seconds collective_time(const System& system, const MeshMapping& mapping, CollectiveKind kind, Algorithm algorithm,
                        Group group, Bytes whole);

// One message to the neighbouring stage, all ranks sending at once:
//   fixed + hops * (hop latency + bytes / (efficiency * w))
// as `hops` interleaved messages share each link that they cross. One route is used, not all ports.
// Measured networks: as collectives. 0 if pp is 1.
Seconds message_time(const System& system, const MeshMapping& mapping, Bytes message);

// What one rank moves in a step along each axis: the sum of V over all-gathers and reduce-scatters (an
// all-reduce counts twice), and of messages for pp.
struct AxisTraffic {
  Bytes tp, dp, pp;
};

// The mapping with the least communication time for this traffic (axes one after another); of equals, the
// first in the order of mappings().
MeshMapping choose_mapping(const System& system, const MeshShape& mesh, const AxisTraffic& traffic);

}  // namespace meshwright
