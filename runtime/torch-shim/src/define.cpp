// Modules from source text, for tests.

#include <caffe2/serialize/versions.h>
#include <torch/csrc/jit/serialization/import_source.h>
#include <torch/script.h>

#include <sstream>

#include "guard.h"

namespace {

using c10::TypeKind;
using c10::TypePtr;

// An object of the class `__torch__.Model` in `source`. Each attribute is filled by its type: a tensor is [1.0], a number 0, a list
// or dict holds one such element (under "k" or 0), and one of interface type `I` an object of class `IImpl`. `CONSTANTS.c0` is the
// tensor [1.0].
class Maker {
public:
  explicit Maker(const char *source)
      : text_(std::make_shared<torch::jit::Source>(std::string(source))),
        unit_(std::make_shared<torch::jit::CompilationUnit>()),
        constants_{ones()},
        importer_(
            unit_, &constants_, [this](const std::string &name) { return name == "__torch__" ? text_ : nullptr; },
            caffe2::serialize::kProducedFileFormatVersion) {}

  torch::jit::Module module() { return torch::jit::Module(object("__torch__.Model").toObject()); }

private:
  static at::Tensor ones() { return at::ones({1}); }

  at::IValue object(const std::string &name) {
    auto type = importer_.loadType(c10::QualifiedName(name))->expect<c10::ClassType>();
    auto object = c10::ivalue::Object::create(c10::StrongTypePtr(unit_, type), type->numAttributes());
    for (size_t i = 0; i < type->numAttributes(); ++i) object->setSlot(i, filled(type->getAttribute(i)));
    return object;
  }

  at::IValue filled(const TypePtr &type) {
    switch (type->kind()) {
    case TypeKind::TensorType: return ones();
    case TypeKind::IntType: return int64_t{0};
    case TypeKind::FloatType: return 0.0;
    case TypeKind::BoolType: return false;
    case TypeKind::StringType: return std::string();
    case TypeKind::OptionalType: return filled(type->expectRef<c10::OptionalType>().getElementType());
    case TypeKind::ListType: {
      auto element = type->expectRef<c10::ListType>().getElementType();
      c10::impl::GenericList list(element);
      list.push_back(filled(element));
      return list;
    }
    case TypeKind::DictType: {
      const auto &dict = type->expectRef<c10::DictType>();
      c10::impl::GenericDict entries(dict.getKeyType(), dict.getValueType());
      bool is_text = dict.getKeyType()->kind() == TypeKind::StringType;
      entries.insert(is_text ? at::IValue("k") : at::IValue(int64_t{0}), filled(dict.getValueType()));
      return entries;
    }
    case TypeKind::TupleType: {
      std::vector<at::IValue> items;
      for (const auto &item : type->containedTypes()) items.push_back(filled(item));
      return c10::ivalue::Tuple::create(std::move(items));
    }
    case TypeKind::ClassType: return object(type->expectRef<c10::ClassType>().name()->qualifiedName());
    case TypeKind::InterfaceType: return object(type->expectRef<c10::InterfaceType>().name()->qualifiedName() + "Impl");
    default: TORCH_CHECK(false, "no value of type ", type->repr_str(), " can be made");
    }
  }

  std::shared_ptr<torch::jit::Source> text_;
  std::shared_ptr<torch::jit::CompilationUnit> unit_;
  std::vector<at::IValue> constants_;
  torch::jit::SourceImporter importer_;
};

}  // namespace

int shim_module_define(const char *source, const char *attributes, const char *path, ShimError *error) {
  return shim::guarded(error, [&] {
    torch::jit::Module module("Model");
    std::istringstream lines(attributes);
    for (std::string line; std::getline(lines, line);) {
      auto middle = line.find('=');
      TORCH_CHECK(middle != std::string::npos, "attribute line without '=': ", line);
      module.register_buffer(line.substr(0, middle), at::full({1}, std::stof(line.substr(middle + 1))));
    }
    module.define(source);
    module.save(path);
  });
}

int shim_classes_define(const char *source, const char *path, ShimError *error) {
  return shim::guarded(error, [&] { Maker(source).module().save(path); });
}
