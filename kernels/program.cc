// See program.h.
#include "program.h"

#include <algorithm>
#include <chrono>
#include <set>

namespace espalier {
namespace {

const char* nameOf(DType dtype) {
  switch (dtype) {
    case DType::u8: return "u8";
    case DType::i8: return "i8";
    case DType::boolean: return "bool";
    case DType::f16: return "f16";
    case DType::bf16: return "bf16";
    case DType::f32: return "f32";
    case DType::i32: return "i32";
    case DType::i64: return "i64";
    case DType::f64: return "f64";
    case DType::none: break;
  }
  return "a type that bindings do not have";
}
std::string text(const int64_t* shape, size_t rank) {
  std::string s = "[";
  for (size_t i = 0; i < rank; i++) {
    if (i) s += ", ";
    s += shape[i] < 0 ? "?" : std::to_string(shape[i]);
  }
  return s + "]";
}
std::string text(const std::vector<int64_t>& shape) { return text(shape.data(), shape.size()); }
std::string text(const Tensor& tensor) { return text(tensor.dims, static_cast<size_t>(tensor.rank)); }
std::string place(const std::string& step, const char* direction, const std::string& tensor) {
  return "step \"" + step + "\", " + direction + " \"" + tensor + "\": ";
}

/// Checks a binding against the value that the model declares.
void verify(const StepSpec& step, const char* direction, const BindingSpec& binding, const std::vector<ValueInfo>& values) {
  const std::string where = place(step.name, direction, binding.tensor);
  const auto found = std::find_if(values.begin(), values.end(), [&](const ValueInfo& v) { return v.name == binding.tensor; });
  if (found == values.end()) throw std::runtime_error(where + "the model has no such " + direction);
  const DType declared = static_cast<DType>(found->type);
  if (declared != binding.dtype)
    throw std::runtime_error(where + "bound as " + nameOf(binding.dtype) + ", but the model declares " + nameOf(declared));
  // An op without shape inference leaves its outputs' shapes unknown, which reads as rank 0.
  if (!found->dims.empty()) {
    bool fits = found->dims.size() == binding.shape.size();
    for (size_t i = 0; fits && i < binding.shape.size(); i++)
      fits = found->dims[i] < 0 || binding.shape[i] < 0 || found->dims[i] == binding.shape[i];
    if (!fits)
      throw std::runtime_error(where + "bound with shape " + text(binding.shape) + ", but the model declares " + text(found->dims));
  }
  if (binding.shape.size() > Tensor::kMaxRank) throw std::runtime_error(where + "more than six dimensions");
  const size_t unit = bytesOf(binding.dtype);
  if (unit == 0) throw std::runtime_error(where + "unknown type");
  if (binding.byteOffset % unit != 0)
    throw std::runtime_error(where + "byte offset " + std::to_string(binding.byteOffset) + " is not a multiple of the element size");
  if (binding.memory->isReadOnly() && direction[0] == 'o')
    throw std::runtime_error(where + "bound to a loaded file, which is read-only");
}

// Scratch blocks that no run uses at the moment: programs that do not run at the same time share one.
std::mutex scratchMutex;
std::vector<std::unique_ptr<Scratch>>& idleScratch() {
  static auto& list = *new std::vector<std::unique_ptr<Scratch>>;
  return list;
}
std::unique_ptr<Scratch> takeScratch() {
  std::lock_guard<std::mutex> lock(scratchMutex);
  if (idleScratch().empty()) return std::make_unique<Scratch>();
  auto scratch = std::move(idleScratch().back());
  idleScratch().pop_back();
  return scratch;
}
void returnScratch(std::unique_ptr<Scratch> scratch) {
  std::lock_guard<std::mutex> lock(scratchMutex);
  idleScratch().push_back(std::move(scratch));
}

}  // namespace

size_t scratchBytes() {
  std::lock_guard<std::mutex> lock(scratchMutex);
  size_t bytes = 0;
  for (const auto& scratch : idleScratch()) bytes += scratch->size();
  return bytes;
}
void trimScratch() {
  std::lock_guard<std::mutex> lock(scratchMutex);
  idleScratch().clear();
}

RunControl::RunControl() { check(OnnxRuntime::get().api->CreateRunOptions(&options_)); }
RunControl::~RunControl() { OnnxRuntime::get().api->ReleaseRunOptions(options_); }
void RunControl::cancel() {
  isCancelled_ = true;
  check(OnnxRuntime::get().api->RunOptionsSetTerminate(options_));
}

Program::Program(const KernelLibrary& library, const std::vector<ModelSpec>& models, std::vector<std::string> dims,
                 std::vector<StepSpec> steps, bool profiles)
    : dims_(std::move(dims)), profiles_(profiles) {
  for (size_t m = 0; m < models.size(); m++) {
    try {
      sessions_.push_back(std::make_unique<Session>(library, models[m].data, models[m].size));
      sequences_.push_back(models[m].nodes.empty() ? nullptr : std::make_unique<NodeSequence>(*sessions_[m], models[m].nodes));
    } catch (const std::runtime_error& error) {
      const auto user = std::find_if(steps.begin(), steps.end(), [&](const StepSpec& s) { return s.model == m; });
      throw std::runtime_error("model " + std::to_string(m) + (user == steps.end() ? "" : " (step \"" + user->name + "\")") +
                               ": " + error.what());
    }
  }
  for (StepSpec& spec : steps) {
    if (spec.model >= sessions_.size())
      throw std::runtime_error("step \"" + spec.name + "\": there is no model " + std::to_string(spec.model));
    const Session& session = *sessions_[spec.model];
    for (const auto& binding : spec.inputs) verify(spec, "input", binding, session.inputs());
    for (const auto& binding : spec.outputs) verify(spec, "output", binding, session.outputs());
    for (const auto& value : session.inputs())
      if (std::none_of(spec.inputs.begin(), spec.inputs.end(), [&](const BindingSpec& b) { return b.tensor == value.name; }))
        throw std::runtime_error(place(spec.name, "input", value.name) + "not bound");
    if (spec.outputs.empty()) throw std::runtime_error("step \"" + spec.name + "\": no output is bound");
    Step step;
    step.model = spec.model;
    step.name = std::move(spec.name);
    const NodeSequence* sequence = sequences_[spec.model].get();
    if (sequence) step.tensors.resize(sequence->places());
    const auto bind = [&](std::vector<BindingSpec>& from, std::vector<Bound>& to) {
      for (auto& binding : from) {
        const size_t at = sequence ? sequence->place(binding.tensor) : 0;
        to.push_back({std::move(binding), {}, 0, nullptr, at});
      }
    };
    bind(spec.inputs, step.inputs);
    bind(spec.outputs, step.outputs);
    steps_.push_back(std::move(step));
  }
  for (Step& step : steps_) {  // at their final place: the names point into them
    for (const auto& bound : step.inputs) step.inputNames.push_back(bound.spec.tensor.c_str());
    for (const auto& bound : step.outputs) step.outputNames.push_back(bound.spec.tensor.c_str());
    step.inputValues.resize(step.inputs.size());
    step.outputValues.resize(step.outputs.size());
  }
}

Program::~Program() {
  const OrtApi* api = OnnxRuntime::get().api;
  for (auto& step : steps_) {
    for (auto& bound : step.inputs) api->ReleaseValue(bound.value);
    for (auto& bound : step.outputs) api->ReleaseValue(bound.value);
  }
}

void Program::resolve(const Step& step, Bound& bound, const char* direction, const std::vector<int64_t>& dims) {
  const BindingSpec& spec = bound.spec;
  Tensor tensor;
  tensor.dtype = spec.dtype;
  tensor.rank = static_cast<int32_t>(spec.shape.size());
  size_t bytes = bytesOf(spec.dtype);
  for (size_t i = 0; i < spec.shape.size(); i++) {
    int64_t dim = spec.shape[i];
    if (dim < 0) {
      const size_t symbol = static_cast<size_t>(-1 - dim);
      dim = dims[symbol];
      if (dim < 0) throw std::runtime_error(place(step.name, direction, spec.tensor) + "dimension \"" + dims_[symbol] + "\" was not given");
    }
    tensor.dims[i] = dim;
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(dim), &bytes))
      throw std::runtime_error(place(step.name, direction, spec.tensor) + "shape " + text(tensor) + " is too large");
  }
  if (bound.tensor && std::equal(tensor.dims, tensor.dims + tensor.rank, bound.tensor.dims)) return;
  const size_t size = spec.memory->size();
  if (spec.byteOffset > size || bytes > size - spec.byteOffset)
    throw std::runtime_error(place(step.name, direction, spec.tensor) + "shape " + text(tensor) + " of " + nameOf(spec.dtype) +
                             " needs " + std::to_string(bytes) + " bytes at offset " + std::to_string(spec.byteOffset) +
                             ", but the buffer has " + std::to_string(size));
  tensor.data = spec.memory->data() + spec.byteOffset;
  bound.bytes = bytes;
  bound.tensor = tensor;
  OnnxRuntime::get().api->ReleaseValue(bound.value);
  bound.value = nullptr;
}

OrtValue* Program::valueOf(Bound& bound) {
  OnnxRuntime& ort = OnnxRuntime::get();
  const Tensor& t = bound.tensor;
  if (!bound.value)
    check(ort.api->CreateTensorWithDataAsOrtValue(ort.cpuMemory, t.data, bound.bytes, t.dims, static_cast<size_t>(t.rank),
                                                  static_cast<ONNXTensorElementDataType>(t.dtype), &bound.value));
  return bound.value;
}

void Program::runStep(Step& step, const std::vector<int64_t>& dims, RunControl& control) {
  const NodeSequence* sequence = sequences_[step.model].get();
  if (!step.isResolved || step.dims != dims) {
    step.isResolved = false;
    for (auto& bound : step.inputs) resolve(step, bound, "input", dims);
    for (auto& bound : step.outputs) resolve(step, bound, "output", dims);
    if (sequence)
      for (const auto* list : {&step.inputs, &step.outputs})
        for (const auto& bound : *list) step.tensors[bound.place] = bound.tensor;
    step.dims = dims;
    step.isResolved = true;
  }
  try {
    if (sequence) {
      sequence->run(step.tensors, [&] { return control.isCancelled(); });
      if (control.isCancelled()) throw Cancelled();
      return;
    }
    for (size_t i = 0; i < step.inputs.size(); i++) step.inputValues[i] = valueOf(step.inputs[i]);
    for (size_t i = 0; i < step.outputs.size(); i++) step.outputValues[i] = valueOf(step.outputs[i]);
    check(OnnxRuntime::get().api->Run(sessions_[step.model]->get(), control.options(), step.inputNames.data(),
                                      step.inputValues.data(), step.inputValues.size(), step.outputNames.data(),
                                      step.outputValues.size(), step.outputValues.data()));
  } catch (const std::runtime_error& error) {
    if (control.isCancelled()) throw Cancelled();
    throw std::runtime_error("step \"" + step.name + "\": " + error.what());
  }
}

const std::vector<Program::Use>& Program::usesOf(size_t from, size_t to) {
  if (uses_.from == from && uses_.to == to) return uses_.list;
  uses_ = {from, to, {}};
  std::set<Memory*> seen;
  for (size_t s = from; s < to; s++)
    for (auto* list : {&steps_[s].inputs, &steps_[s].outputs})
      for (const auto& bound : *list) {
        Memory* memory = bound.spec.memory.get();
        if (seen.insert(memory).second) uses_.list.push_back({memory, &bound, s, list == &steps_[s].inputs ? "input" : "output"});
      }
  return uses_.list;
}

void Program::run(const std::vector<int64_t>& dims, size_t from, size_t to, RunControl& control, double* stepMs) {
  struct Hold {
    std::vector<Memory*> held;
    ~Hold() {
      for (Memory* memory : held) memory->release();
    }
  } hold;
  for (const Use& use : usesOf(from, to)) {
    if (!use.memory->acquire()) throw std::runtime_error(place(steps_[use.step].name, use.direction, use.bound->spec.tensor) + "its buffer was freed");
    hold.held.push_back(use.memory);
  }

  struct Lease {
    std::unique_ptr<Scratch> scratch = takeScratch();
    ~Lease() { returnScratch(std::move(scratch)); }
  } lease;
  RunScope scope{lease.scratch.get(), &profileMutex_, profiles_ ? &profile_ : nullptr};
  RunScopeGuard guard(scope);
  auto before = std::chrono::steady_clock::now();
  for (size_t s = from; s < to; s++) {
    if (control.isCancelled()) throw Cancelled();
    runStep(steps_[s], dims, control);
    const auto now = std::chrono::steady_clock::now();
    stepMs[s - from] = std::chrono::duration<double, std::milli>(now - before).count();
    before = now;
  }
}

std::map<std::string, OpTime> Program::profile() {
  std::lock_guard<std::mutex> lock(profileMutex_);
  return profile_;
}

Worker::~Worker() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  wake_.notify_one();
  if (!thread_.joinable()) return;
  thread_.join();
}

void Worker::post(std::function<void()> task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(task));
    if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
  }
  wake_.notify_one();
}

void Worker::loop() {
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return ends_ || !queue_.empty(); });
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace espalier
