// One hash for keys of files, rows and plans.
#pragma once

#include <string>
#include <string_view>

namespace meshwright {

// 16 hexadecimal digits of the 64-bit FNV-1a hash of `bytes`: a key, not a protection against forgery.
// `seed`: the text that the hash goes on from, "" for none.
std::string content_key(std::string_view bytes, std::string_view seed = "");

}  // namespace meshwright
