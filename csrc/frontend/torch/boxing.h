// Conversions with which kernels (register.h) read arguments of multikv's types from the dispatcher's stack.
//
// The conversions never throw. The dispatcher passes the ownership of every argument, and an exception in one
// conversion would leak the arguments after it. Invalid arguments are found later, by the checks of the op.
#pragma once

#include <torch/csrc/stable/library.h>

#include <concepts>
#include <optional>
#include <type_traits>

#include "frontend/torch/format_name.h"
#include "frontend/torch/list.h"
#include "frontend/torch/tensor.h"
#include "frontend/torch/word.h"

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)

template <>
struct ToImpl<multikv::Tensor> {
  static multikv::Tensor call(StableIValue value, uint64_t, bool) {
    return multikv::Tensor(to<AtenTensorHandle>(value));
  }
};

template <>
struct ToImpl<multikv::MutableTensor> {
  static multikv::MutableTensor call(StableIValue value, uint64_t, bool) {
    return multikv::MutableTensor(to<AtenTensorHandle>(value));
  }
};

template <class Item>
  requires std::derived_from<Item, multikv::Tensor>
struct ToImpl<std::optional<Item>> {
  static std::optional<Item> call(StableIValue value, uint64_t, bool) {
    auto* inner = to<StableIValue*>(value);
    if (inner == nullptr) return std::nullopt;
    std::optional<Item> tensor(std::in_place, to<AtenTensorHandle>(*inner));
    delete inner;
    return tensor;
  }
};

// Each tensor of a stable list is an owning handle. The Tensor that is made from it takes the ownership.
template <class Item>
struct ToImpl<multikv::ListOf<Item>> {
  static multikv::ListOf<Item> call(StableIValue value, uint64_t, bool) {
    auto handle = to<StableListHandle>(value);
    multikv::ListOf<Item> list;
    size_t size = 0;
    torch_list_size(handle, &size);
    list.items.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item{};
      torch_list_get_item(handle, i, &item);
      if constexpr (std::is_same_v<Item, int64_t>) list.items.push_back(to<int64_t>(item));
      else list.items.emplace_back(to<AtenTensorHandle>(item));
    }
    torch_delete_list(handle);
    return list;
  }
};

template <class Item>
struct ToImpl<std::optional<multikv::ListOf<Item>>> {
  static std::optional<multikv::ListOf<Item>> call(StableIValue value, uint64_t version, bool is_internal) {
    auto* inner = to<StableIValue*>(value);
    if (inner == nullptr) return std::nullopt;
    auto list = ToImpl<multikv::ListOf<Item>>::call(*inner, version, is_internal);
    delete inner;
    return list;
  }
};

// A str has its own conversion, because torch 2.13's conversion of a str to std::string allocates a std::string that it
// never frees.
template <class Text>
  requires std::same_as<Text, multikv::FormatName> || std::same_as<Text, multikv::Word>
struct ToImpl<Text> {
  static Text call(StableIValue value, uint64_t, bool) {
    auto handle = to<StringHandle>(value);
    const char* data = "";
    size_t length = 0;
    torch_string_length(handle, &length);
    torch_string_c_str(handle, &data);
    auto text = Text::parse({data, length});
    torch_delete_string(handle);
    return text;
  }
};

HIDDEN_NAMESPACE_END(torch, stable, detail)
