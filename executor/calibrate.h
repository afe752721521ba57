// Measures this machine with the kernels and collectives that a step uses, and writes what it finds as a system file
// (configs/systems/ has the form; sim/system.h reads it). Not for: machines of several hosts.
#pragma once

#include <mpi.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace meshwright {

// Collective over `comm`: one rank per core, all working at once, as memory and caches are shared. Takes some 10 s.
// Peaks: measure_machine(). Compute: steps of small models on every rank, each operation timed; per kind a fixed overhead and either FLOP/s by the
// smallest extent of the product or bytes/s, by least squares over medians. Experts are predicted at capacity: their
// rate counts those FLOPs, measured with an even routing at a capacity factor of 1.5.
// Network: the ring and direct collectives in groups of every size that divides the ranks, and messages, by size.
// Returns the system on rank 0, null elsewhere. `progress` gets a phrase now and then, on rank 0.
nlohmann::ordered_json calibrate(MPI_Comm comm, const std::function<void(const std::string&)>& progress);

// What a core and its share of memory can do at most, all ranks of `comm` at once: what shares of the peak are measured
// against. Of each the best of several attempts, an attempt taking as long as its slowest rank. Takes about a second.
struct MachineRates {
  double flops_per_s = 0;       // of a rank, f32: multiply-adds in registers (executor/kernels/machine_rates.h)
  double bf16_flops_per_s = 0;  // the same of products of bf16
  double bytes_per_s = 0;  // of a rank: a copy of a buffer twice as large as the last cache; bytes read plus written
};
MachineRates measure_machine(MPI_Comm comm);  // collective; the same on every rank

// What calibrate() would find now for its largest matrix products: FLOP/s of the slowest rank, all of them at once, by the
// same measurement in fewer steps (about a second). Collective; the same on every rank.
struct ProductRate {
  double smallest_dimension = 0;  // of these products: where the calibration's table has them
  double flops_per_s = 0;
};
ProductRate product_rate(MPI_Comm comm);

// What calibrate() calls a device of this machine: "a core of AMD EPYC ...".
std::string this_device();

}  // namespace meshwright
