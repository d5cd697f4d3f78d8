// Walks pickles as libtorch's unpickler does, without making anything of them; see pickle.h.
//
// Opcodes and their arguments are those of Python's pickletools. What libtorch does not know ends the walk: it refuses it itself.

#include "pickle.h"

#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

using RecordSize = std::function<std::optional<size_t>(const std::string &key)>;

// A value on the unpickler's stack, as far as it says how long a storage is.
struct Value {
  enum class Kind { mark, number, text, tuple, other };

  Kind kind = Kind::other;
  int64_t number = 0;
  std::string_view text;  // within the pickle; also the name of a global
  std::shared_ptr<const std::vector<Value>> items;
};

constexpr const char *advice = ": the archive is damaged; fetch it, or export it, again";

struct Element {
  const char *storage;
  int64_t size;
};

constexpr Element elements[] = {
    {"DoubleStorage", 8}, {"FloatStorage", 4},   {"HalfStorage", 2},           {"BFloat16Storage", 2},
    {"LongStorage", 8},   {"IntStorage", 4},     {"ShortStorage", 2},          {"QInt32Storage", 4},
    {"ComplexDoubleStorage", 16}, {"ComplexFloatStorage", 8},
};

// Bytes of an element of a storage; 1 where that is so or nobody knows.
int64_t element_size(std::string_view storage) {
  for (const auto &element : elements) {
    if (storage == element.storage) return element.size;
  }
  return 1;
}

class Walk {
public:
  Walk(std::string name, const uint8_t *data, size_t size, RecordSize record_size)
      : name_(std::move(name)), data_(data), size_(size), record_size_(std::move(record_size)) {}

  // To the end of the pickle, or to what libtorch refuses.
  void run() {
    while (position_ < size_ && step(data_[position_++])) {
    }
  }

private:
  // One opcode; whether the walk goes on.
  bool step(uint8_t opcode) {
    switch (opcode) {
    case '.': return false;
    case '(': return push({Value::Kind::mark});
    case 0x80: return take(1).has_value();
    case 'N':
    case 0x88:
    case 0x89:
    case ']':
    case '}': return push({});
    case ')': return push_tuple({});
    case 'J': return push_number(4, true);
    case 'K': return push_number(1, false);
    case 'M': return push_number(2, false);
    case 0x8a: return push_long();
    case 'G': return take(8).has_value() && push({});
    case 'X':
    case 'B':
    case 'T': return push_text(4);
    case 'U':
    case 'C':
    case 0x8c: return push_text(1);
    case 0x8d:
    case 0x8e: return push_text(8);
    case 'c': return push_global();
    case 'q': return put(1);
    case 'r': return put(4);
    case 0x94: return memoize(memo_.size());
    case 'h': return get(1);
    case 'j': return get(4);
    case '0': return pop().has_value();
    case '2': return !stack_.empty() && push(stack_.back());
    case 't': return tuple();
    case 0x85: return tuple(1);
    case 0x86: return tuple(2);
    case 0x87: return tuple(3);
    case 'l':
    case 'd': return pop_to_mark().has_value() && push({});
    case 'e':
    case 'u': return pop_to_mark().has_value();
    case 'a':
    case 'b': return pop().has_value();
    case 's': return pop().has_value() && pop().has_value();
    case 'R':
    case 0x81: return pop().has_value() && pop().has_value() && push({});
    case 'Q': return storage();
    default: return false;
    }
  }

  // A little-endian number of `bytes` bytes.
  std::optional<uint64_t> take(size_t bytes) {
    if (size_ - position_ < bytes) return std::nullopt;
    uint64_t number = 0;
    std::memcpy(&number, data_ + position_, bytes);
    position_ += bytes;
    return number;
  }

  bool push(Value value) {
    stack_.push_back(std::move(value));
    return true;
  }

  bool push_number(size_t bytes, bool is_signed) {
    auto number = take(bytes);
    if (!number) return false;
    Value value{Value::Kind::number};
    value.number = is_signed ? static_cast<int32_t>(*number) : static_cast<int64_t>(*number);
    return push(std::move(value));
  }

  bool push_long() {
    auto length = take(1);
    return length && *length == 8 && push_number(8, false);
  }

  // A text behind its length.
  bool push_text(size_t bytes) {
    auto length = take(bytes);
    if (!length) return false;
    size_t left = size_ - position_;
    TORCH_CHECK(*length <= left, name_, " says that a text has ", *length, " bytes, of which ", left, " are there", advice);
    Value value{Value::Kind::text};
    value.text = text_here(*length);
    position_ += *length;
    return push(std::move(value));
  }

  std::string_view text_here(size_t length) const {
    return {reinterpret_cast<const char *>(data_) + position_, length};
  }

  std::optional<std::string_view> line() {
    const void *end = std::memchr(data_ + position_, '\n', size_ - position_);
    if (end == nullptr) return std::nullopt;
    size_t length = static_cast<const uint8_t *>(end) - (data_ + position_);
    auto text = text_here(length);
    position_ += length + 1;
    return text;
  }

  bool push_global() {
    Value value;
    auto module = line();
    auto name = module ? line() : std::nullopt;
    if (!name) return false;
    value.text = *name;
    return push(std::move(value));
  }

  bool put(size_t bytes) {
    auto index = take(bytes);
    return index && memoize(*index);
  }

  // Every place takes an opcode to fill it, so that there are fewer places than bytes.
  bool memoize(uint64_t index) {
    TORCH_CHECK(index < size_, name_, " has ", size_, " bytes, but fills place ", index, " of its memo", advice);
    if (stack_.empty()) return false;
    memo_[index] = stack_.back();
    return true;
  }

  bool get(size_t bytes) {
    auto index = take(bytes);
    if (!index) return false;
    auto found = memo_.find(*index);
    return push(found == memo_.end() ? Value{} : found->second);
  }

  std::optional<Value> pop() {
    if (stack_.empty()) return std::nullopt;
    Value value = std::move(stack_.back());
    stack_.pop_back();
    return value;
  }

  std::optional<std::vector<Value>> pop_to_mark() {
    for (size_t at = stack_.size(); at > 0; --at) {
      if (stack_[at - 1].kind != Value::Kind::mark) continue;
      std::vector<Value> items(stack_.begin() + static_cast<std::ptrdiff_t>(at), stack_.end());
      stack_.resize(at - 1);
      return items;
    }
    return std::nullopt;
  }

  bool push_tuple(std::vector<Value> items) {
    // The tuples of interest hold none, and so there is no depth.
    for (auto &item : items) {
      if (item.kind == Value::Kind::tuple) item = {};
    }
    Value value{Value::Kind::tuple};
    value.items = std::make_shared<const std::vector<Value>>(std::move(items));
    return push(std::move(value));
  }

  bool tuple() {
    auto items = pop_to_mark();
    return items && push_tuple(std::move(*items));
  }

  bool tuple(size_t count) {
    if (stack_.size() < count) return false;
    std::vector<Value> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return push_tuple(std::move(items));
  }

  // ('storage', class, key, device, elements): the record of that key holds so many.
  bool storage() {
    auto id = pop();
    if (!id || id->kind != Value::Kind::tuple || id->items->size() < 5) return false;
    std::string key((*id->items)[2].text);
    const auto &count = (*id->items)[4];
    if (count.kind != Value::Kind::number) return false;
    if (!record_size_) return push({});
    auto size = count.number == 0 ? std::optional<size_t>(0) : record_size_(key);
    if (!size) return false;
    auto limit = static_cast<int64_t>(*size) / element_size((*id->items)[1].text);
    TORCH_CHECK(count.number >= 0 && count.number <= limit, name_, " says that storage '", key, "' has ", count.number,
                " elements, of which ", limit, " are there", advice);
    return push({});
  }

  std::string name_;
  const uint8_t *data_;
  size_t size_;
  RecordSize record_size_;
  size_t position_ = 0;
  std::vector<Value> stack_;
  std::unordered_map<uint64_t, Value> memo_;
};

bool ends_with(const std::string &text, const std::string &end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

void shim::check_pickles(caffe2::serialize::PyTorchStreamReader &reader) {
  const std::string suffix = ".pkl";
  for (const auto &name : reader.getAllRecords()) {
    // The other one is of debug information.
    if (!ends_with(name, suffix) && !ends_with(name, ".debug_pkl")) continue;
    auto [data, size] = reader.getRecord(name);
    auto folder = name.substr(0, name.size() - suffix.size()) + "/";
    RecordSize record_size = [&](const std::string &key) -> std::optional<size_t> {
      if (!reader.hasRecord(folder + key)) return std::nullopt;
      return reader.getRecordSize(folder + key);
    };
    // What a model was traced with: saved without its data, and never looked at.
    if (name == "traced_inputs.pkl") record_size = nullptr;
    Walk(name, static_cast<const uint8_t *>(data.get()), size, record_size).run();
  }
}
