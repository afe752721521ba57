#include "executor/checkpoint/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "model/input/json_reader.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

constexpr std::int64_t kRead = 1 << 20;  // elements at once
constexpr std::string_view kOneFile = "model.safetensors", kIndex = "model.safetensors.index.json";

}  // namespace

WeightsFile::WeightsFile(const std::filesystem::path& path, WeightMap map)
    : map_(std::move(map)), pieces_(map_.parameters.size()) {
  std::filesystem::path file = path;
  if (std::filesystem::is_directory(path)) {
    file = weights_file_in(path);
    if (!std::filesystem::exists(file)) file = path / kIndex;
    if (!std::filesystem::exists(file))
      throw InputError(Diagnostic{path.string(), "", "", fmt::format("a folder with {} or {}", kOneFile, kIndex),
                                  "name the file itself"});
  }
  std::map<std::string, Place> found;
  if (file.extension() == ".json")
    open_index(file, found);
  else
    open(file, found);
  match(file.string(), found);
  for (std::size_t i = 0; i < map_.pieces.size(); ++i)
    pieces_[static_cast<std::size_t>(map_.pieces[i].ours.tensor)].push_back(i);
}

void WeightsFile::open(const std::filesystem::path& file, std::map<std::string, Place>& found) {
  files_.push_back(std::make_unique<SafetensorsFile>(file));
  for (const auto& [name, entry] : files_.back()->tensors()) found[name] = {files_.size() - 1, entry};
}

void WeightsFile::open_index(const std::filesystem::path& index, std::map<std::string, Place>& found) {
  const JsonDocument document = read_json_file(index);
  JsonReader reader(document);
  ObjectReader root = reader.root();
  root.has("metadata");
  std::map<std::string, std::set<std::string>> shards;  // file to the tensors that it has by the index
  if (auto weights = root.object("weight_map"))
    for (const std::string& name : weights->keys())
      if (const auto shard = weights->text(name)) {
        if (shard->empty() || std::filesystem::path(*shard).filename() != *shard || *shard == "..")
          reader.report(weights->path(name), "the name of a file beside the index", "shards lie in one folder");
        shards[*shard].insert(name);
      }
  reader.finish();

  std::vector<Diagnostic> faults;
  for (const auto& [shard, names] : shards) {
    const std::filesystem::path file = index.parent_path() / shard;
    std::map<std::string, Place> here;
    open(file, here);
    for (const std::string& name : names)
      if (!here.contains(name))
        faults.push_back(
            {file.string(), name, "(missing)", "the tensor, as " + index.filename().string() + " says", ""});
    for (const auto& [name, place] : here) {
      if (!names.contains(name))
        faults.push_back(
            {file.string(), name, "", "only tensors that " + index.filename().string() + " has there", ""});
      found[name] = place;
    }
  }
  if (!faults.empty()) throw InputError(std::move(faults));
}

void WeightsFile::match(const std::string& source, const std::map<std::string, Place>& found) {
  const std::string& prefix = map_.optional_prefix;
  const bool without_prefix = !prefix.empty() && std::none_of(found.begin(), found.end(), [&](const auto& entry) {
    return entry.first.starts_with(prefix);
  });
  std::vector<Diagnostic> faults;
  std::set<std::string> used;
  for (const CheckpointTensor& tensor : map_.tensors) {
    const std::string name = without_prefix ? tensor.name.substr(prefix.size()) : tensor.name;
    const auto at = found.find(name);
    if (at == found.end()) {
      faults.push_back({source, name, "(missing)", to_string(tensor.shape), "are these the weights of this model?"});
      continue;
    }
    used.insert(name);
    const SafetensorsEntry& entry = at->second.entry;
    if (entry.shape != tensor.shape)
      faults.push_back({source, name, to_string(entry.shape), to_string(tensor.shape), "the model is of another size"});
    else if (!SafetensorsFile::is_readable(entry.dtype))
      faults.push_back({source, name, entry.dtype, "F32, BF16, F16 or F64", "quantized weights are not read"});
    places_.push_back(at->second);
  }
  for (const auto& [name, place] : found)
    if (!used.contains(name) && !map_.skips(name))
      faults.push_back({source, name, to_string(place.entry.shape), "only tensors of the model",
                        "the model's configuration has no such part"});
  if (!faults.empty()) throw InputError(std::move(faults));
}

template <class Real>
void WeightsFile::read(int parameter, std::int64_t first, std::int64_t n, Real* out) {
  const auto p = static_cast<std::size_t>(parameter);
  if (parameter != kept_) {
    values_.assign(static_cast<std::size_t>(elements(map_.parameters[p].shape)), 0);
    std::vector<double> rows;
    for (const std::size_t i : pieces_[p]) {
      const WeightPiece& piece = map_.pieces[i];
      const Place& place = places_[static_cast<std::size_t>(piece.theirs.tensor)];
      const std::int64_t pitch = piece.theirs.pitch, most = std::max<std::int64_t>(kRead / pitch, 1);
      for (std::int64_t done = 0; done < piece.rows; done += most) {  // whole rows, as most pieces are as wide
        WeightPiece part = piece;
        part.rows = std::min(most, piece.rows - done);
        (piece.transposed ? part.ours.column : part.ours.row) += done;
        rows.resize(static_cast<std::size_t>(part.rows * pitch));
        files_[place.file]->read(place.entry, (piece.theirs.row + done) * pitch, part.rows * pitch, rows.data());
        part.theirs.row = 0;
        for_each_element(part, [&](std::int64_t ours, std::int64_t theirs) {
          values_[static_cast<std::size_t>(ours)] = rows[static_cast<std::size_t>(theirs)];
        });
      }
    }
    kept_ = parameter;
  }
  check(first >= 0 && first + n <= static_cast<std::int64_t>(values_.size()), "weights: elements {} to {} of {}", first,
        first + n, values_.size());
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<Real>(values_[static_cast<std::size_t>(first + i)]);
}

std::filesystem::path weights_file_in(const std::filesystem::path& folder) { return folder / kOneFile; }

template <class Real>
void save_weights(const std::filesystem::path& file, const WeightMap& map, DType dtype,
                  const std::vector<std::vector<Real>>& parameters) {
  check(parameters.size() == map.parameters.size(), "weights: {} parameters of {}", parameters.size(),
        map.parameters.size());
  std::vector<SafetensorsShape> tensors;
  for (const CheckpointTensor& t : map.tensors) tensors.push_back({t.name, t.shape});
  std::vector<std::vector<const WeightPiece*>> pieces(tensors.size());
  for (const WeightPiece& piece : map.pieces) pieces[static_cast<std::size_t>(piece.theirs.tensor)].push_back(&piece);
  write_safetensors<Real>(file, dtype, tensors, [&](int tensor, Real* out) {
    for (const WeightPiece* piece : pieces[static_cast<std::size_t>(tensor)]) {
      const std::vector<Real>& values = parameters[static_cast<std::size_t>(piece->ours.tensor)];
      for_each_element(*piece, [&](std::int64_t ours, std::int64_t theirs) {
        out[theirs] = values[static_cast<std::size_t>(ours)];
      });
    }
  });
}

template void WeightsFile::read(int, std::int64_t, std::int64_t, float*);
template void WeightsFile::read(int, std::int64_t, std::int64_t, double*);
template void save_weights(const std::filesystem::path&, const WeightMap&, DType,
                           const std::vector<std::vector<float>>&);
template void save_weights(const std::filesystem::path&, const WeightMap&, DType,
                           const std::vector<std::vector<double>>&);

}  // namespace meshwright
