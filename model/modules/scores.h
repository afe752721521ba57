// What the kinds of attention share: rotary positions, and scores, probabilities and output of the heads of this rank.
#pragma once

#include <cstdint>
#include <string_view>

#include "model/modules/forward.h"
#include "model/program/rope.h"

namespace meshwright {

// Rotates the first `width` channels of each of `heads` heads, `head_width` columns apart, in place. `own_part`: the rows are
// this rank's part of the sequence.
void rotate(Forward& f, const View& x, std::int64_t heads, std::int64_t head_width, std::int64_t width,
            const RopeSpec& rope, bool own_part);

// Of whole sequences; columns as model/program/op.h's Attention has them.
struct HeadInputs {
  View q, k, v;
  View qr{}, kr{};
};

// Attention of these heads (shape: all but tokens, batch and block), and the output projection's summand.
View attend(Forward& f, const HeadInputs& in, AttentionShape shape, double dropout, std::string_view out_kernel);

}  // namespace meshwright
