#pragma once
namespace simt {
class Shadow {
 public:
  void forget() {}
};
}  // namespace simt
