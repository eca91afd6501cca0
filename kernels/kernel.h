// What a kernel sees: tensors, attributes, scratch memory and a thread pool. No ONNX Runtime header is needed to
// write or test a kernel; session.cc adapts these to custom operators.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace espalier {

/// Element types, numbered as ONNX's TensorProto.DataType.
enum class DType : int32_t { none = 0, f32 = 1, u8 = 2, i8 = 3, i32 = 6, i64 = 7, boolean = 9, f16 = 10, f64 = 11, bf16 = 16 };

/// A row-major view. `data` is null for an absent optional input and for an output nobody asked for.
struct Tensor {
  static constexpr int32_t kMaxRank = 6;
  void* data = nullptr;
  DType dtype = DType::none;
  int32_t rank = 0;
  int64_t dims[kMaxRank] = {};

  explicit operator bool() const { return data != nullptr; }
  template <typename T> T* as() const { return static_cast<T*>(data); }
  int64_t size() const {
    int64_t n = 1;
    for (int32_t i = 0; i < rank; i++) n *= dims[i];
    return n;
  }
};

/// The attributes of one node, read once when the session is created.
class Attributes {
 public:
  virtual ~Attributes() = default;
  virtual int64_t integer(const char* name, int64_t fallback) const = 0;
  virtual float number(const char* name, float fallback) const = 0;
};

/// One execution of one node.
class Context {
 public:
  virtual ~Context() = default;
  /// Input `i`; an absent optional input (also one past the end) has null data.
  virtual Tensor input(int i) = 0;
  /// Allocates (or finds the bound buffer of) output `i`; null data when the node does not ask for it.
  virtual Tensor output(int i, const int64_t* dims, int rank) = 0;
  /// 64-byte aligned, uninitialized, valid until the kernel returns. At most one call per execution; null on exhaustion.
  virtual void* scratch(size_t bytes) = 0;
  /// Threads that parallelFor uses at most. Results must not depend on it.
  virtual int threads() = 0;
  /// Runs body(user, task) for every task in [0, tasks), in any order, on the team (team.h); returns when all are done.
  virtual void parallel(int64_t tasks, void (*body)(void* user, size_t task), void* user) = 0;

  Tensor output(int i, std::initializer_list<int64_t> dims) { return output(i, dims.begin(), static_cast<int>(dims.size())); }
  template <typename F> void parallelFor(int64_t tasks, F&& f) {
    using Body = std::remove_reference_t<F>;
    parallel(tasks, [](void* user, size_t task) { (*static_cast<Body*>(user))(static_cast<int64_t>(task)); }, &f);
  }
};

/// One node of a session. Several sessions may hold several of these; run() may use `this` as read-only state only.
class Kernel {
 public:
  virtual ~Kernel() = default;
  /// Returns null on success, else a static message that says what is wrong. Never throws.
  virtual const char* run(Context& context) noexcept = 0;
};

/// How an op is registered. `outputs` gives each output's type; DType::none there means "the activation type": such an
/// op is registered twice, as `Name` (f32) and as `Name_bf16` (bf16). Inputs may be of any type; the kernel looks.
struct KernelDef {
  const char* name;
  int minInputs, maxInputs;  // inputs past minInputs are optional
  int minOutputs, maxOutputs;
  DType outputs[8];
  /// `activation` is the type chosen for the outputs declared as none (f32 or bf16).
  Kernel* (*create)(const Attributes& attributes, DType activation);
};

/// Every .cc in ops/ defines one `extern const KernelDef k<Name>Defs[]`-style table through this registrar; the library
/// of one instruction set exports them through espalierKernels().
struct KernelList {
  const KernelDef* defs;
  int count;
  KernelList* next;
  static KernelList*& head() {
    static KernelList* first = nullptr;
    return first;
  }
  KernelList(const KernelDef* d, int n) : defs(d), count(n), next(head()) { head() = this; }
};

#define ESPALIER_REGISTER(table) \
  static ::espalier::KernelList table##Registration(table, static_cast<int>(sizeof(table) / sizeof(table[0])))

}  // namespace espalier
