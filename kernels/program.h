// A program: ONNX sessions and the steps that run them over bound memory, all in one call on a thread of its own.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "memory.h"
#include "node_sequence.h"
#include "session.h"

namespace espalier {

struct BindingSpec {
  std::string tensor;
  std::shared_ptr<Memory> memory;
  size_t byteOffset = 0;
  DType dtype = DType::none;
  std::vector<int64_t> shape;  // -1 - k: symbolic dimension k of the program
};
struct StepSpec {
  size_t model = 0;
  std::string name;
  std::vector<BindingSpec> inputs, outputs;
};
struct ModelSpec {
  const void* data;
  size_t size;
  /// Those of a model that is to run without ONNX Runtime between its nodes; empty: ONNX Runtime runs it.
  std::vector<NodeSpec> nodes;
};

/// Thrown by a run that was cancelled.
struct Cancelled {};

/// Lets another thread stop a run, between nodes and between steps.
class RunControl {
 public:
  RunControl();
  ~RunControl();
  RunControl(const RunControl&) = delete;
  RunControl& operator=(const RunControl&) = delete;
  void cancel();
  bool isCancelled() const { return isCancelled_; }
  OrtRunOptions* options() const { return options_; }

 private:
  std::atomic<bool> isCancelled_{false};
  OrtRunOptions* options_ = nullptr;
};

class Program {
 public:
  /// Creates the sessions and checks every binding against its model. Throws std::runtime_error naming step and tensor.
  Program(const KernelLibrary& library, const std::vector<ModelSpec>& models, std::vector<std::string> dims,
          std::vector<StepSpec> steps, bool profiles);
  ~Program();

  size_t steps() const { return steps_.size(); }
  size_t dims() const { return dims_.size(); }
  /// Runs steps [from, to). `dims` has one value per symbolic dimension, -1 where not given; `stepMs` gets one per step.
  /// One thread at a time. Throws std::runtime_error naming the step, or Cancelled.
  void run(const std::vector<int64_t>& dims, size_t from, size_t to, RunControl& control, double* stepMs);
  std::map<std::string, OpTime> profile();

 private:
  struct Bound {
    BindingSpec spec;
    Tensor tensor;              // for the step's dimensions
    size_t bytes = 0;
    OrtValue* value = nullptr;  // of the tensor, once ONNX Runtime has needed it
    size_t place = 0;           // in the tensors of a sequence
  };
  struct Step {
    size_t model = 0;
    std::string name;
    std::vector<Bound> inputs, outputs;
    std::vector<int64_t> dims;  // that everything is resolved for
    bool isResolved = false;
    std::vector<const char*> inputNames, outputNames;
    std::vector<const OrtValue*> inputValues;
    std::vector<OrtValue*> outputValues;
    std::vector<Tensor> tensors;
  };

  /// A memory that steps use, with the first binding to it.
  struct Use {
    Memory* memory;
    const Bound* bound;
    size_t step;
    const char* direction;
  };
  struct Uses {
    size_t from, to;
    std::vector<Use> list;
  };

  /// Every memory of steps [from, to), once.
  const std::vector<Use>& usesOf(size_t from, size_t to);
  void resolve(const Step& step, Bound& bound, const char* direction, const std::vector<int64_t>& dims);
  OrtValue* valueOf(Bound& bound);
  void runStep(Step& step, const std::vector<int64_t>& dims, RunControl& control);

  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<std::unique_ptr<NodeSequence>> sequences_;  // null: the session runs
  std::vector<std::string> dims_;
  std::vector<Step> steps_;
  Uses uses_{0, 0, {}};
  const bool profiles_;
  std::mutex profileMutex_;
  std::map<std::string, OpTime> profile_;
};

/// Bytes of kernel scratch held by the process, for statistics; trim drops what no run uses.
size_t scratchBytes();
void trimScratch();

/// A thread that works off a queue. Started by the first task; the destructor waits for the queue.
class Worker {
 public:
  Worker() = default;
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  void post(std::function<void()> task);

 private:
  void loop();
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace espalier
