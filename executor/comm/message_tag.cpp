#include "executor/comm/message_tag.h"

#include <vector>

namespace meshwright {
namespace {

struct Numbers {
  explicit Numbers(int ranks) : sent(static_cast<std::size_t>(ranks)), received(static_cast<std::size_t>(ranks)) {}
  int collectives = 0;
  std::vector<int> sent, received;  // by the other rank
};

int forget(MPI_Comm, int, void* numbers, void*) {
  delete static_cast<Numbers*>(numbers);
  return MPI_SUCCESS;
}

Numbers& numbers_of(MPI_Comm comm) {
  static const int key = [] {
    int k = MPI_KEYVAL_INVALID;
    MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, forget, &k, nullptr);
    return k;
  }();
  void* found = nullptr;
  int is_there = 0;
  MPI_Comm_get_attr(comm, key, &found, &is_there);
  if (!is_there) {
    int ranks = 0;
    MPI_Comm_size(comm, &ranks);
    found = new Numbers(ranks);
    MPI_Comm_set_attr(comm, key, found);
  }
  return *static_cast<Numbers*>(found);
}

int next(int& number) {
  const int now = number;
  number = (number + 1) % kTagNumbers;
  return now;
}

}  // namespace

int next_collective_tag(MPI_Comm comm, MessageKind kind) { return tag_of(kind, next(numbers_of(comm).collectives)); }
int next_send_tag(MPI_Comm comm, int to) {
  return tag_of(MessageKind::kSend, next(numbers_of(comm).sent.at(static_cast<std::size_t>(to))));
}
int next_recv_tag(MPI_Comm comm, int from) {
  return tag_of(MessageKind::kSend, next(numbers_of(comm).received.at(static_cast<std::size_t>(from))));
}

}  // namespace meshwright
