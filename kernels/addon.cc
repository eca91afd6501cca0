// The door between JavaScript and everything native. src/runtime/addon.ts is its only caller and checks arguments' types;
// what can go wrong with their values (sizes, names, files, models) is checked here and thrown as a JavaScript error.
#include <napi.h>

#include <chrono>
#include <cstring>
#include <set>

#include "cpu/ceiling.h"
#include "memory.h"
#include "program.h"
#include "session.h"

namespace espalier {
namespace {

// ---- work off the event loop ---------------------------------------------------------------------------------------

/// One piece of work and the promise it settles. Made and destroyed on the JavaScript thread.
struct Task {
  explicit Task(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}
  Napi::Promise::Deferred deferred;
  std::function<void()> work;
  std::function<Napi::Value(Napi::Env)> result;
  std::string error;
  bool isCancelled = false;
};

/// What one JavaScript environment (the main thread, or a worker thread) has under way.
struct Instance {
  Napi::ThreadSafeFunction settle;
  int unsettled = 0;  // JavaScript thread only: keeps the event loop alive while above 0
  std::mutex mutex;
  std::condition_variable idle;
  int working = 0;
  std::set<RunControl*> controls;
  Worker probes;  // measurements
  Worker loads;   // files
};

void settleTask(Napi::Env env, Napi::Function, Instance* instance, Task* raw) {
  const std::unique_ptr<Task> task(raw);
  if (!env) return;
  const Napi::HandleScope scope(env);
  if (--instance->unsettled == 0) instance->settle.Unref(env);
  if (task->error.empty() && !task->isCancelled) {
    task->deferred.Resolve(task->result(env));
    return;
  }
  Napi::Error error = Napi::Error::New(env, task->isCancelled ? "cancelled" : task->error);
  if (task->isCancelled) error.Value().Set("code", "ESPALIER_CANCELLED");
  task->deferred.Reject(error.Value());
}

Napi::Promise submit(Napi::Env env, Worker& worker, std::function<void()> work, std::function<Napi::Value(Napi::Env)> result) {
  auto* instance = env.GetInstanceData<Instance>();
  auto* task = new Task(env);
  task->work = std::move(work);
  task->result = std::move(result);
  const Napi::Promise promise = task->deferred.Promise();
  if (instance->unsettled++ == 0) instance->settle.Ref(env);
  {
    std::lock_guard<std::mutex> lock(instance->mutex);
    instance->working++;
  }
  worker.post([instance, task] {
    try {
      task->work();
    } catch (const Cancelled&) {
      task->isCancelled = true;
    } catch (const std::exception& error) {
      task->error = error.what();
    }
    // A queue that is closing takes nothing: the environment ends, and the task is left to it.
    instance->settle.NonBlockingCall(
        task, [instance](Napi::Env e, Napi::Function f, Task* t) { settleTask(e, f, instance, t); });
    {
      std::lock_guard<std::mutex> lock(instance->mutex);
      instance->working--;
      instance->idle.notify_all();
    }
  });
  return promise;
}

/// The environment ends: stops what runs, so that no thread uses what is about to go.
void endInstance(Instance* instance) {
  std::unique_lock<std::mutex> lock(instance->mutex);
  for (RunControl* control : instance->controls) control->cancel();
  instance->idle.wait(lock, [&] { return instance->working == 0; });
}

// ---- handles -------------------------------------------------------------------------------------------------------

template <typename T> Napi::Value wrap(Napi::Env env, std::shared_ptr<T> value) {
  return Napi::External<std::shared_ptr<T>>::New(env, new std::shared_ptr<T>(std::move(value)),
                                                 [](Napi::Env, std::shared_ptr<T>* p) { delete p; });
}
template <typename T> const std::shared_ptr<T>& unwrap(const Napi::Value& value) {
  return *value.As<Napi::External<std::shared_ptr<T>>>().Data();
}

struct ProgramHandle {
  std::unique_ptr<Program> program;  // used on the worker only, profile() excepted
  std::mutex mutex;                  // guards the pointer
  Worker worker;                     // last: its queue ends before the program goes
};

size_t sizeArgument(const Napi::Value& value, const char* what) {
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0) || number > 9007199254740991.0 || number != static_cast<double>(static_cast<size_t>(number)))
    throw std::runtime_error(std::string(what) + " must be a whole number, not " + std::to_string(number));
  return static_cast<size_t>(number);
}

// ---- functions -----------------------------------------------------------------------------------------------------

Napi::Value openRuntime(const Napi::CallbackInfo& info) {
  OnnxRuntime& ort = OnnxRuntime::open(info[0].As<Napi::String>(), info[1].As<Napi::Number>().Int32Value());
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("version", ort.version);
  result.Set("threads", ort.threads);
  return result;
}

Napi::Value supportedIsas(const Napi::CallbackInfo& info) {
  Napi::Array names = Napi::Array::New(info.Env());
  uint32_t n = 0;
#if defined(__x86_64__)
  // Exactly the flags that CMakeLists.txt compiles each library with.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) names[n++] = Napi::String::New(info.Env(), "avx512bf16");
  if (avx512) names[n++] = Napi::String::New(info.Env(), "avx512");
  if (avx2) names[n++] = Napi::String::New(info.Env(), "avx2");
#endif
  names[n++] = Napi::String::New(info.Env(), "portable");
  return names;
}

Napi::Value loadKernels(const Napi::CallbackInfo& info) {
  KernelLibrary& library = KernelLibrary::open(info[0].As<Napi::String>());
  return Napi::External<KernelLibrary>::New(info.Env(), &library);
}

Napi::Value allocate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const size_t size = sizeArgument(info[0], "byteLength");
  auto memory = Memory::allocate(size);
  Napi::Object result = Napi::Object::New(env);
  result.Set("handle", wrap(env, memory));
  const auto bytes = Napi::ArrayBuffer::New(env, memory->data(), size,
                                            [](Napi::Env, void*, std::shared_ptr<Memory>* owner) { delete owner; },
                                            new std::shared_ptr<Memory>(memory));
  result.Set("bytes", Napi::Uint8Array::New(env, size, bytes, 0));
  return result;
}

/// loadFile(path, Float64Array of {byteOffset, byteLength, rows, unitBytes}...)
Napi::Value loadFile(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string path = info[0].As<Napi::String>();
  const auto numbers = info[1].As<Napi::Float64Array>();
  std::vector<StripedRange> striped(numbers.ElementLength() / 4);
  const auto number = [&](size_t i) { return sizeArgument(Napi::Number::New(env, numbers[i]), "a striped range"); };
  for (size_t i = 0; i < striped.size(); i++) striped[i] = {number(4 * i), number(4 * i + 1), number(4 * i + 2), number(4 * i + 3)};
  auto memory = std::make_shared<std::shared_ptr<Memory>>();
  return submit(
      env, env.GetInstanceData<Instance>()->loads,
      [=] { *memory = Memory::loadFile(path, striped, *OnnxRuntime::get().team); },
      [memory](Napi::Env e) {
        Napi::Object result = Napi::Object::New(e);
        result.Set("byteLength", static_cast<double>((*memory)->size()));
        result.Set("handle", wrap(e, std::move(*memory)));
        return result;
      });
}

Napi::Value readMemory(const Napi::CallbackInfo& info) {
  const auto& memory = unwrap<Memory>(info[0]);
  const size_t offset = sizeArgument(info[1], "byteOffset"), length = sizeArgument(info[2], "byteLength");
  if (offset > memory->size() || length > memory->size() - offset)
    throw std::runtime_error(std::to_string(length) + " bytes at offset " + std::to_string(offset) +
                             " are outside of a buffer of " + std::to_string(memory->size()));
  if (!memory->acquire()) throw std::runtime_error("the buffer was freed");
  Napi::Uint8Array copy = Napi::Uint8Array::New(info.Env(), length);
  if (length) memcpy(copy.Data(), memory->data() + offset, length);
  memory->release();
  return copy;
}

Napi::Value freeMemory(const Napi::CallbackInfo& info) {
  // The view goes first, so that nothing in JavaScript can reach pages that are gone.
  if (info[1].IsArrayBuffer()) info[1].As<Napi::ArrayBuffer>().Detach();
  unwrap<Memory>(info[0])->free();
  return info.Env().Undefined();
}

/// {tensor, handle, byteOffset, dtype, shape}[] as addon.ts lays bindings out; symbolic dimension k is -1 - k.
std::vector<BindingSpec> readBindings(const Napi::Value& value) {
  const auto list = value.As<Napi::Array>();
  std::vector<BindingSpec> bindings(list.Length());
  for (uint32_t i = 0; i < list.Length(); i++) {
    const auto entry = list.Get(i).As<Napi::Object>();
    bindings[i].tensor = entry.Get("tensor").As<Napi::String>();
    bindings[i].memory = unwrap<Memory>(entry.Get("handle"));
    bindings[i].byteOffset = sizeArgument(entry.Get("byteOffset"), "byteOffset");
    bindings[i].dtype = static_cast<DType>(entry.Get("dtype").As<Napi::Number>().Int32Value());
    const auto shape = entry.Get("shape").As<Napi::Array>();
    for (uint32_t d = 0; d < shape.Length(); d++) bindings[i].shape.push_back(shape.Get(d).As<Napi::Number>().Int64Value());
  }
  return bindings;
}

std::vector<std::string> readStrings(const Napi::Value& value) {
  const auto list = value.As<Napi::Array>();
  std::vector<std::string> strings(list.Length());
  for (uint32_t i = 0; i < list.Length(); i++) strings[i] = list.Get(i).As<Napi::String>();
  return strings;
}

/// {name, inputs, outputs}[] or null.
std::vector<NodeSpec> readNodes(const Napi::Value& value) {
  std::vector<NodeSpec> nodes;
  if (!value.IsArray()) return nodes;
  const auto list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++) {
    const auto entry = list.Get(i).As<Napi::Object>();
    nodes.push_back({entry.Get("name").As<Napi::String>(), readStrings(entry.Get("inputs")), readStrings(entry.Get("outputs"))});
  }
  return nodes;
}

Napi::Value createProgram(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto* library = info[0].As<Napi::External<KernelLibrary>>().Data();
  const auto modelList = info[1].As<Napi::Array>();
  const auto stepList = info[3].As<Napi::Array>();
  const bool profiles = info[4].As<Napi::Boolean>();

  struct Model {
    std::string bytes;
    std::vector<NodeSpec> nodes;
  };
  auto models = std::make_shared<std::vector<Model>>();
  for (uint32_t i = 0; i < modelList.Length(); i++) {
    const auto entry = modelList.Get(i).As<Napi::Object>();
    const auto bytes = entry.Get("bytes").As<Napi::Uint8Array>();
    models->push_back({std::string(reinterpret_cast<const char*>(bytes.Data()), bytes.ByteLength()), readNodes(entry.Get("nodes"))});
  }
  auto dims = std::make_shared<std::vector<std::string>>(readStrings(info[2]));
  auto steps = std::make_shared<std::vector<StepSpec>>();
  for (uint32_t i = 0; i < stepList.Length(); i++) {
    const auto entry = stepList.Get(i).As<Napi::Object>();
    steps->push_back({sizeArgument(entry.Get("model"), "model"), entry.Get("name").As<Napi::String>(),
                      readBindings(entry.Get("inputs")), readBindings(entry.Get("outputs"))});
  }

  auto handle = std::make_shared<ProgramHandle>();
  return submit(
      env, handle->worker,
      [=] {
        std::vector<ModelSpec> specs;
        for (auto& model : *models) specs.push_back({model.bytes.data(), model.bytes.size(), std::move(model.nodes)});
        auto program = std::make_unique<Program>(*library, specs, std::move(*dims), std::move(*steps), profiles);
        std::lock_guard<std::mutex> lock(handle->mutex);
        handle->program = std::move(program);
      },
      [handle](Napi::Env e) { return wrap(e, handle); });
}

Napi::Value createControl(const Napi::CallbackInfo& info) { return wrap(info.Env(), std::make_shared<RunControl>()); }

Napi::Value cancelRun(const Napi::CallbackInfo& info) {
  unwrap<RunControl>(info[0])->cancel();
  return info.Env().Undefined();
}

Napi::Value runProgram(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto handle = unwrap<ProgramHandle>(info[0]);
  const auto values = info[1].As<Napi::Float64Array>();
  std::vector<int64_t> dims(values.ElementLength());
  for (size_t i = 0; i < dims.size(); i++) dims[i] = values[i] < 0 ? -1 : static_cast<int64_t>(sizeArgument(Napi::Number::New(env, values[i]), "a dimension"));
  const size_t from = sizeArgument(info[2], "from"), to = sizeArgument(info[3], "to");
  auto control = unwrap<RunControl>(info[4]);
  auto stepMs = std::make_shared<std::vector<double>>();
  Instance* instance = env.GetInstanceData<Instance>();
  {
    std::lock_guard<std::mutex> lock(instance->mutex);
    instance->controls.insert(control.get());
  }
  return submit(
      env, handle->worker,
      [=] {
        struct Forget {
          Instance* instance;
          RunControl* control;
          ~Forget() {
            std::lock_guard<std::mutex> lock(instance->mutex);
            instance->controls.erase(control);
          }
        } forget{instance, control.get()};
        if (!handle->program) throw std::runtime_error("the program was closed");
        if (from > to || to > handle->program->steps())
          throw std::runtime_error("steps [" + std::to_string(from) + ", " + std::to_string(to) + ") of a program that has " +
                                   std::to_string(handle->program->steps()));
        if (dims.size() != handle->program->dims()) throw std::runtime_error("wrong number of dimensions");
        stepMs->resize(to - from);
        handle->program->run(dims, from, to, *control, stepMs->data());
      },
      [stepMs](Napi::Env e) {
        auto array = Napi::Float64Array::New(e, stepMs->size());
        std::copy(stepMs->begin(), stepMs->end(), array.Data());
        return array;
      });
}

Napi::Value profileProgram(const Napi::CallbackInfo& info) {
  const auto& handle = unwrap<ProgramHandle>(info[0]);
  Napi::Array list = Napi::Array::New(info.Env());
  std::lock_guard<std::mutex> lock(handle->mutex);
  if (!handle->program) return list;
  uint32_t n = 0;
  for (const auto& [name, time] : handle->program->profile()) {
    Napi::Object entry = Napi::Object::New(info.Env());
    entry.Set("op", name);
    entry.Set("calls", static_cast<double>(time.calls));
    entry.Set("milliseconds", static_cast<double>(time.nanoseconds) / 1e6);
    list[n++] = entry;
  }
  return list;
}

Napi::Value closeProgram(const Napi::CallbackInfo& info) {
  auto handle = unwrap<ProgramHandle>(info[0]);
  return submit(
      info.Env(), handle->worker,
      [handle] {
        std::unique_ptr<Program> program;
        std::lock_guard<std::mutex> lock(handle->mutex);
        program = std::move(handle->program);
      },
      [handle](Napi::Env env) { return env.Undefined(); });
}

/// Helpers that still spin after a run would depress what is measured.
void awaitIdleTeam() { std::this_thread::sleep_for(std::chrono::milliseconds(10)); }

Napi::Value probeCeiling(const Napi::CallbackInfo& info) {
  const double milliseconds = info[0].As<Napi::Number>();
  auto rate = std::make_shared<double>(0);
  return submit(
      info.Env(), info.Env().GetInstanceData<Instance>()->probes,
      [=] {
        awaitIdleTeam();
        *rate = measureCeiling(ceilingKind(), OnnxRuntime::get().threads, milliseconds);
      },
      [rate](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result.Set("kind", ceilingKind() == CeilingKind::bf16 ? "bf16" : "fp32");
        result.Set("gflops", *rate);
        return result;
      });
}

Napi::Value probeReadBandwidth(const Napi::CallbackInfo& info) {
  auto rate = std::make_shared<double>(0);
  return submit(
      info.Env(), info.Env().GetInstanceData<Instance>()->probes,
      [=] {
        awaitIdleTeam();
        *rate = measureReadBandwidth(OnnxRuntime::get().threads, size_t{512} << 20);
      },
      [rate](Napi::Env env) { return Napi::Number::New(env, *rate); });
}

Napi::Value memoryStatistics(const Napi::CallbackInfo& info) {
  const ArenaStatistics arena = OnnxRuntime::get().arena.statistics();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("live", static_cast<double>(arena.live));
  result.Set("peakLive", static_cast<double>(arena.peakLive));
  result.Set("highWater", static_cast<double>(arena.highWater));
  result.Set("scratch", static_cast<double>(scratchBytes()));
  return result;
}

Napi::Value trimMemory(const Napi::CallbackInfo& info) {
  OnnxRuntime::get().arena.trim();
  trimScratch();
  return info.Env().Undefined();
}

void keepInstance(Napi::Env, Instance*) {}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  auto* instance = new Instance;  // stays: threads may still be about to touch it when the environment is gone
  instance->settle = Napi::ThreadSafeFunction::New(env, Napi::Function(), "espalier", 0, 1);
  instance->settle.Unref(env);
  env.SetInstanceData<Instance, keepInstance>(instance);
  env.AddCleanupHook(endInstance, instance);
  const auto define = [&](const char* name, Napi::Value (*f)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, f, name));
  };
  define("open", openRuntime);
  define("supportedIsas", supportedIsas);
  define("loadKernels", loadKernels);
  define("allocate", allocate);
  define("loadFile", loadFile);
  define("read", readMemory);
  define("free", freeMemory);
  define("createProgram", createProgram);
  define("createControl", createControl);
  define("cancel", cancelRun);
  define("run", runProgram);
  define("profile", profileProgram);
  define("close", closeProgram);
  define("measureCeiling", probeCeiling);
  define("measureReadBandwidth", probeReadBandwidth);
  define("memory", memoryStatistics);
  define("trim", trimMemory);
  return exports;
}

}  // namespace

NODE_API_MODULE(espalier, initialize)

}  // namespace espalier
