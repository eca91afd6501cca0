// ONNX Runtime in this process, and our kernels as custom operators of its sessions.
#pragma once
#include <onnxruntime_c_api.h>

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel.h"
#include "memory.h"
#include "team.h"

namespace espalier {

/// The library that onnxruntime-node installed. Opened once; environment, thread pool and arena live until the process ends.
struct OnnxRuntime {
  const OrtApi* api = nullptr;
  OrtEnv* env = nullptr;
  OrtMemoryInfo* cpuMemory = nullptr;
  Arena arena;
  Team* team = nullptr;  // never deleted: its threads outlive static destructors
  int threads = 0;
  std::string version;

  /// Throws std::runtime_error. Later calls need the same number of threads (0: whatever it is).
  static OnnxRuntime& open(const std::string& path, int threads);
  static OnnxRuntime& get();
};

/// Throws std::runtime_error with the status's message; releases it.
void check(OrtStatus* status);

/// Of one element; 0: no type that bindings have.
size_t bytesOf(DType dtype);

/// Time and calls of one operator.
struct OpTime {
  int64_t calls = 0, nanoseconds = 0;
};

/// What the kernels of one run share; belongs to the thread that runs.
struct RunScope {
  Scratch* scratch = nullptr;
  std::mutex* profileMutex = nullptr;
  std::map<std::string, OpTime>* profile = nullptr;  // null: not asked for
};
/// Sets the scope of this thread, and restores the one before.
class RunScopeGuard {
 public:
  explicit RunScopeGuard(RunScope& scope);
  ~RunScopeGuard();

 private:
  RunScope* before_;
};

struct CustomOp;

/// One node of a session.
struct Node {
  const CustomOp* op;
  std::unique_ptr<Kernel> kernel;

  DType outputType(size_t i) const;
  /// Runs the kernel, on time's account where the run profiles. Null on success, else its message.
  const char* run(Context& context) const;
  /// That message, naming the operator.
  std::string describe(const char* message) const;
};

/// What kernels get from the run that they are part of.
class RunContext : public Context {
 public:
  void* scratch(size_t bytes) override;
  int threads() override;
  void parallel(int64_t tasks, void (*body)(void*, size_t), void* user) override;
};

/// The operators of one kernel library, as a domain that sessions are created with.
class KernelLibrary {
 public:
  /// Opened once per path, never closed. Throws std::runtime_error.
  static KernelLibrary& open(const std::string& path);
  const OrtCustomOpDomain* domain() const { return domain_; }
  ~KernelLibrary();

 private:
  KernelLibrary() = default;
  std::vector<std::unique_ptr<CustomOp>> ops_;
  OrtCustomOpDomain* domain_ = nullptr;
};

struct ValueInfo {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> dims;  // -1: symbolic
};

/// One ONNX model, ready to run.
class Session {
 public:
  /// Throws std::runtime_error.
  Session(const KernelLibrary& library, const void* bytes, size_t size);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  OrtSession* get() const { return session_; }
  const std::vector<ValueInfo>& inputs() const { return inputs_; }
  const std::vector<ValueInfo>& outputs() const { return outputs_; }
  /// The node of our operators that has this name; null: there is none.
  const Node* node(const std::string& name) const;

 private:
  OrtSession* session_ = nullptr;
  std::map<std::string, const Node*> nodes_;
  std::vector<ValueInfo> inputs_, outputs_;
};

}  // namespace espalier
