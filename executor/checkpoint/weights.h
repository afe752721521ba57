// Weights of a published model into our parameters, and ours into such files, through the model's WeightMap.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "executor/checkpoint/safetensors.h"
#include "model/families/weights.h"

namespace meshwright {

class WeightsFile {
 public:
  // `path`: a .safetensors file; a model.safetensors.index.json, whose shards lie beside it; or a folder with either. Throws
  // InputError that names every tensor that is missing, superfluous, or of another shape or type than `map` says.
  WeightsFile(const std::filesystem::path& path, WeightMap map);

  // Elements [first, first + n) of the whole tensor of a parameter, row-major: what Executor::load_parameters() asks for.
  template <class Real>
  void read(int parameter, std::int64_t first, std::int64_t n, Real* out);

 private:
  struct Place {
    std::size_t file = 0;
    SafetensorsEntry entry;
  };
  void open_index(const std::filesystem::path& index, std::map<std::string, Place>& found);
  void open(const std::filesystem::path& file, std::map<std::string, Place>& found);
  void match(const std::string& source, const std::map<std::string, Place>& found);

  WeightMap map_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<Place> places_;                     // of map_.tensors
  std::vector<std::vector<std::size_t>> pieces_;  // of a parameter, in map_.pieces
  int kept_ = -1;                                 // the parameter that was read last, as it is asked for in parts
  std::vector<double> values_;
};

// Where save_weights() writes those of a folder that WeightsFile then reads: model.safetensors.
std::filesystem::path weights_file_in(const std::filesystem::path& folder);

// Writes all parameters, [parameter][element] as Executor::gather() gives them, to one .safetensors file, in kF32, kF64 or
// kBF16. What WeightsFile then reads has the same bits where the type holds them.
template <class Real>
void save_weights(const std::filesystem::path& file, const WeightMap& map, DType dtype,
                  const std::vector<std::vector<Real>>& parameters);

}  // namespace meshwright
