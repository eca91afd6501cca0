// See session.h. The contract with ONNX Runtime: one global thread pool, every session's
// memory from our arena, no memory pattern (it doubles the peak), kernels that return a status and never throw.
#include "session.h"

#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

namespace espalier {
namespace {

OnnxRuntime* runtime = nullptr;
std::mutex runtimeMutex;
thread_local RunScope* currentScope = nullptr;
/// The nodes of the session that this thread creates.
thread_local std::map<std::string, const Node*>* createdNodes = nullptr;

// ---- the arena as an OrtAllocator ----------------------------------------------------------------------------------
struct ArenaAllocator : OrtAllocator {
  OnnxRuntime* owner = nullptr;
};
void* ORT_API_CALL arenaAlloc(OrtAllocator* self, size_t bytes) {
  return bytes ? static_cast<ArenaAllocator*>(self)->owner->arena.allocate(bytes) : nullptr;
}
void ORT_API_CALL arenaFree(OrtAllocator* self, void* block) {
  if (block) static_cast<ArenaAllocator*>(self)->owner->arena.free(block);
}
const OrtMemoryInfo* ORT_API_CALL arenaInfo(const OrtAllocator* self) {
  return static_cast<const ArenaAllocator*>(self)->owner->cpuMemory;
}

void setConfig(OrtSessionOptions* options, const char* key, const char* value) {
  check(runtime->api->AddSessionConfigEntry(options, key, value));
}

}  // namespace

void check(OrtStatus* status) {
  if (!status) return;
  const std::string message = runtime->api->GetErrorMessage(status);
  runtime->api->ReleaseStatus(status);
  throw std::runtime_error(message);
}

size_t bytesOf(DType dtype) {
  switch (dtype) {
    case DType::u8: case DType::i8: case DType::boolean: return 1;
    case DType::f16: case DType::bf16: return 2;
    case DType::f32: case DType::i32: return 4;
    case DType::i64: case DType::f64: return 8;
    case DType::none: break;
  }
  return 0;
}

OnnxRuntime& OnnxRuntime::get() {
  if (!runtime) throw std::runtime_error("ONNX Runtime has not been opened");
  return *runtime;
}

OnnxRuntime& OnnxRuntime::open(const std::string& path, int threads) {
  std::lock_guard<std::mutex> lock(runtimeMutex);
  if (runtime && runtime->env) {
    if (threads && threads != runtime->threads)
      throw std::runtime_error("this process already has a pool of " + std::to_string(runtime->threads) +
                               " threads, which cannot be changed to " + std::to_string(threads));
    return *runtime;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  const auto getBase = reinterpret_cast<const OrtApiBase*(ORT_API_CALL*)()>(dlsym(library, "OrtGetApiBase"));
  if (!getBase) throw std::runtime_error(path + ": not an ONNX Runtime library");
  if (!runtime) runtime = new OnnxRuntime;  // never deleted: pool threads may outlive static destructors
  runtime->version = getBase()->GetVersionString();
  runtime->api = getBase()->GetApi(ORT_API_VERSION);
  if (!runtime->api)
    throw std::runtime_error("ONNX Runtime " + runtime->version + " at " + path + " is older than API " +
                             std::to_string(ORT_API_VERSION) + "; install the onnxruntime-node that package.json names");
  const OrtApi* api = runtime->api;

  OrtThreadingOptions* threading = nullptr;
  check(api->CreateThreadingOptions(&threading));
  check(api->SetGlobalIntraOpNumThreads(threading, threads));
  check(api->SetGlobalInterOpNumThreads(threading, 1));
  // Only standard operators use this pool; where its threads spun they would take the processors of the team's.
  check(api->SetGlobalSpinControl(threading, 0));
  // Failures come back as messages; the log would only repeat them on stderr.
  OrtEnv* env = nullptr;
  OrtStatus* created = api->CreateEnvWithGlobalThreadPools(ORT_LOGGING_LEVEL_FATAL, "espalier", threading, &env);
  api->ReleaseThreadingOptions(threading);
  check(created);
  check(api->DisableTelemetryEvents(env));
  check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &runtime->cpuMemory));
  auto* allocator = new ArenaAllocator;
  memset(static_cast<OrtAllocator*>(allocator), 0, sizeof(OrtAllocator));
  allocator->version = ORT_API_VERSION;
  allocator->owner = runtime;
  allocator->Alloc = allocator->Reserve = arenaAlloc;
  allocator->Free = arenaFree;
  allocator->Info = arenaInfo;
  check(api->RegisterAllocator(env, allocator));
  runtime->threads = threads;
  runtime->team = new Team(threads);
  runtime->env = env;
  return *runtime;
}

RunScopeGuard::RunScopeGuard(RunScope& scope) : before_(currentScope) { currentScope = &scope; }
RunScopeGuard::~RunScopeGuard() { currentScope = before_; }

void* RunContext::scratch(size_t bytes) { return currentScope ? currentScope->scratch->get(bytes) : nullptr; }
int RunContext::threads() { return runtime->threads; }
void RunContext::parallel(int64_t tasks, void (*body)(void*, size_t), void* user) { runtime->team->run(tasks, body, user); }

// ---- kernels as custom operators -----------------------------------------------------------------------------------
struct CustomOp : OrtCustomOp {
  const KernelDef* def = nullptr;
  std::string name;
  DType activation = DType::f32;
};

namespace {

const CustomOp* self(const OrtCustomOp* op) { return static_cast<const CustomOp*>(op); }

class InfoAttributes : public Attributes {
 public:
  explicit InfoAttributes(const OrtKernelInfo* info) : info_(info) {}
  // A number is taken whichever way it was written, so that 1 and 1.0 cannot be told apart by accident.
  int64_t integer(const char* name, int64_t fallback) const override {
    int64_t integer;
    float real;
    if (ok(runtime->api->KernelInfoGetAttribute_int64(info_, name, &integer))) return integer;
    return ok(runtime->api->KernelInfoGetAttribute_float(info_, name, &real)) ? static_cast<int64_t>(real) : fallback;
  }
  float number(const char* name, float fallback) const override {
    int64_t integer;
    float real;
    if (ok(runtime->api->KernelInfoGetAttribute_float(info_, name, &real))) return real;
    return ok(runtime->api->KernelInfoGetAttribute_int64(info_, name, &integer)) ? static_cast<float>(integer) : fallback;
  }

 private:
  static bool ok(OrtStatus* status) {
    if (!status) return true;
    runtime->api->ReleaseStatus(status);
    return false;
  }
  const OrtKernelInfo* info_;
};

class OrtContext : public RunContext {
 public:
  explicit OrtContext(OrtKernelContext* context) : context_(context) {
    fail(runtime->api->KernelContext_GetInputCount(context, &inputs_));
    fail(runtime->api->KernelContext_GetOutputCount(context, &outputs_));
  }
  ~OrtContext() override {
    if (status_) runtime->api->ReleaseStatus(status_);
  }
  OrtStatus* takeStatus() {
    OrtStatus* status = status_;
    status_ = nullptr;
    return status;
  }
  Tensor input(int i) override {
    const OrtValue* value = nullptr;
    if (i < 0 || static_cast<size_t>(i) >= inputs_) return {};
    if (fail(runtime->api->KernelContext_GetInput(context_, static_cast<size_t>(i), &value)) || !value) return {};
    return view(const_cast<OrtValue*>(value));
  }
  Tensor output(int i, const int64_t* dims, int rank) override {
    OrtValue* value = nullptr;
    if (i < 0 || static_cast<size_t>(i) >= outputs_) return {};
    if (fail(runtime->api->KernelContext_GetOutput(context_, static_cast<size_t>(i), dims, static_cast<size_t>(rank), &value)) ||
        !value)
      return {};
    return view(value);
  }

 private:
  /// Keeps the first failure, which the operator then returns.
  bool fail(OrtStatus* status) {
    if (!status) return false;
    if (status_)
      runtime->api->ReleaseStatus(status);
    else
      status_ = status;
    return true;
  }
  Tensor view(OrtValue* value) {
    Tensor tensor;
    ONNXTensorElementDataType type;
    const int64_t* dims = nullptr;
    size_t rank = 0;
    if (fail(runtime->api->GetTensorElementTypeAndShapeDataReference(value, &type, &dims, &rank))) return {};
    if (rank > Tensor::kMaxRank) {
      fail(runtime->api->CreateStatus(ORT_INVALID_ARGUMENT, "a tensor has more than six dimensions"));
      return {};
    }
    tensor.dtype = static_cast<DType>(type);  // both are numbered as in TensorProto
    tensor.rank = static_cast<int32_t>(rank);
    for (size_t d = 0; d < rank; d++) tensor.dims[d] = dims[d];
    if (fail(runtime->api->GetTensorMutableData(value, &tensor.data))) return {};
    alignas(64) static char empty[64];
    if (!tensor.data) tensor.data = empty;  // present, of no elements
    return tensor;
  }

  OrtKernelContext* context_;
  size_t inputs_ = 0, outputs_ = 0;
  OrtStatus* status_ = nullptr;
};

std::string nameOf(const OrtKernelInfo* info) {
  size_t size = 0;  // with the terminator
  check(runtime->api->KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, 0);
  check(runtime->api->KernelInfo_GetNodeName(info, name.data(), &size));
  name.resize(size - 1);
  return name;
}

OrtStatus* ORT_API_CALL createKernel(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  try {
    const CustomOp* custom = self(op);
    size_t inputs = 0;
    check(runtime->api->KernelInfo_GetInputCount(info, &inputs));
    if (inputs < static_cast<size_t>(custom->def->minInputs))
      throw std::runtime_error("needs " + std::to_string(custom->def->minInputs) + " inputs, but the node has " +
                               std::to_string(inputs));
    Kernel* made = self(op)->def->create(InfoAttributes(info), self(op)->activation);
    if (!made) {
      const std::string message = self(op)->name + " does not exist with these attributes";
      return runtime->api->CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
    }
    auto node = std::make_unique<Node>(Node{self(op), std::unique_ptr<Kernel>(made)});
    if (createdNodes) (*createdNodes)[nameOf(info)] = node.get();
    *kernel = node.release();
    return nullptr;
  } catch (const std::exception& error) {
    const std::string message = self(op)->name + ": " + error.what();
    return runtime->api->CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
  }
}

OrtStatus* ORT_API_CALL compute(void* kernel, OrtKernelContext* context) {
  const Node& node = *static_cast<Node*>(kernel);
  OrtContext adapter(context);
  const char* message = node.run(adapter);
  if (OrtStatus* status = adapter.takeStatus()) return status;
  if (!message) return nullptr;
  try {
    return runtime->api->CreateStatus(ORT_INVALID_ARGUMENT, node.describe(message).c_str());
  } catch (const std::bad_alloc&) {
    return runtime->api->CreateStatus(ORT_INVALID_ARGUMENT, message);
  }
}

ONNXTensorElementDataType outputType(const CustomOp* op, size_t i) {
  const DType type = op->def->outputs[i];
  return static_cast<ONNXTensorElementDataType>(type == DType::none ? op->activation : type);
}

std::unique_ptr<CustomOp> makeOp(const KernelDef& def, DType activation) {
  auto op = std::make_unique<CustomOp>();
  memset(static_cast<OrtCustomOp*>(op.get()), 0, sizeof(OrtCustomOp));
  op->def = &def;
  op->activation = activation;
  op->name = def.name;
  if (activation == DType::bf16) op->name += "_bf16";
  op->version = ORT_API_VERSION;
  op->GetName = [](const OrtCustomOp* o) { return self(o)->name.c_str(); };
  op->GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op->GetInputTypeCount = [](const OrtCustomOp* o) { return static_cast<size_t>(self(o)->def->maxInputs); };
  op->GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  // A gap may lie before the last input that an op needs (weights of a format with fewer parts): createKernel counts.
  op->GetInputCharacteristic = [](const OrtCustomOp*, size_t i) { return i == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL; };
  op->GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op->GetOutputTypeCount = [](const OrtCustomOp* o) { return static_cast<size_t>(self(o)->def->maxOutputs); };
  op->GetOutputType = [](const OrtCustomOp* o, size_t i) { return outputType(self(o), i); };
  op->GetOutputCharacteristic = [](const OrtCustomOp* o, size_t i) {
    return i < static_cast<size_t>(self(o)->def->minOutputs) ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  op->GetVariadicInputMinArity = op->GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op->GetVariadicInputHomogeneity = op->GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op->CreateKernelV2 = createKernel;
  op->KernelComputeV2 = compute;
  op->KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op->GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op->GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
  return op;
}

}  // namespace

DType Node::outputType(size_t i) const { return static_cast<DType>(espalier::outputType(op, i)); }

const char* Node::run(Context& context) const {
  if (!currentScope || !currentScope->profile) return kernel->run(context);
  const auto start = std::chrono::steady_clock::now();
  const char* message = kernel->run(context);
  const auto taken = std::chrono::steady_clock::now() - start;
  std::lock_guard<std::mutex> lock(*currentScope->profileMutex);
  OpTime& time = (*currentScope->profile)[op->name];
  time.calls++;
  time.nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count();
  return message;
}

std::string Node::describe(const char* message) const {
  const bool namesItself = strncmp(message, op->def->name, strlen(op->def->name)) == 0;
  return namesItself ? message : op->name + ": " + message;
}

KernelLibrary::~KernelLibrary() {
  if (domain_) runtime->api->ReleaseCustomOpDomain(domain_);
}

KernelLibrary& KernelLibrary::open(const std::string& path) {
  static std::mutex mutex;
  static auto& libraries = *new std::map<std::string, std::unique_ptr<KernelLibrary>>;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = libraries.find(path);
  if (found != libraries.end()) return *found->second;
  const OrtApi* api = OnnxRuntime::get().api;
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw std::runtime_error(dlerror());
  const auto kernels = reinterpret_cast<const KernelList* (*)()>(dlsym(handle, "espalierKernels"));
  if (!kernels) throw std::runtime_error(path + ": not a kernel library; build it again");

  std::unique_ptr<KernelLibrary> library(new KernelLibrary);
  check(api->CreateCustomOpDomain("espalier", &library->domain_));
  for (const KernelList* list = kernels(); list; list = list->next) {
    for (int i = 0; i < list->count; i++) {
      const KernelDef& def = list->defs[i];
      bool varies = false;
      for (int o = 0; o < def.maxOutputs; o++) varies |= def.outputs[o] == DType::none;
      library->ops_.push_back(makeOp(def, DType::f32));
      if (varies) library->ops_.push_back(makeOp(def, DType::bf16));
    }
  }
  for (const auto& op : library->ops_) check(api->CustomOpDomain_Add(library->domain_, op.get()));
  return *libraries.emplace(path, std::move(library)).first->second;
}

// ---- sessions ------------------------------------------------------------------------------------------------------
namespace {

using CountFunction = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t*) noexcept;
using NameFunction = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t, OrtAllocator*, char**) noexcept;
using TypeFunction = OrtStatus*(ORT_API_CALL*)(const OrtSession*, size_t, OrtTypeInfo**) noexcept;

std::vector<ValueInfo> describe(const OrtSession* session, CountFunction count, NameFunction name, TypeFunction typeOf) {
  const OrtApi* api = runtime->api;
  OrtAllocator* allocator = nullptr;
  check(api->GetAllocatorWithDefaultOptions(&allocator));
  size_t n = 0;
  check(count(session, &n));
  std::vector<ValueInfo> values(n);
  for (size_t i = 0; i < n; i++) {
    char* text = nullptr;
    check(name(session, i, allocator, &text));
    values[i].name = text;
    check(api->AllocatorFree(allocator, text));
    OrtTypeInfo* info = nullptr;
    check(typeOf(session, i, &info));
    const std::unique_ptr<OrtTypeInfo, decltype(api->ReleaseTypeInfo)> owner(info, api->ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    check(api->CastTypeInfoToTensorInfo(info, &tensor));
    if (!tensor) throw std::runtime_error(values[i].name + " is not a tensor");
    check(api->GetTensorElementType(tensor, &values[i].type));
    size_t rank = 0;
    check(api->GetDimensionsCount(tensor, &rank));
    values[i].dims.resize(rank);
    check(api->GetDimensions(tensor, values[i].dims.data(), rank));
  }
  return values;
}

}  // namespace

Session::Session(const KernelLibrary& library, const void* bytes, size_t size) {
  OnnxRuntime& ort = OnnxRuntime::get();
  const OrtApi* api = ort.api;
  OrtSessionOptions* options = nullptr;
  check(api->CreateSessionOptions(&options));
  const std::unique_ptr<OrtSessionOptions, decltype(api->ReleaseSessionOptions)> owner(options, api->ReleaseSessionOptions);
  check(api->DisablePerSessionThreads(options));
  check(api->DisableMemPattern(options));
  check(api->SetSessionExecutionMode(options, ORT_SEQUENTIAL));
  check(api->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_BASIC));
  check(api->SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
  setConfig(options, "session.use_env_allocators", "1");
  check(api->AddCustomOpDomain(options, const_cast<OrtCustomOpDomain*>(library.domain())));
  createdNodes = &nodes_;
  OrtStatus* created = api->CreateSessionFromArray(ort.env, bytes, size, options, &session_);
  createdNodes = nullptr;
  check(created);
  try {
    inputs_ = describe(session_, api->SessionGetInputCount, api->SessionGetInputName, api->SessionGetInputTypeInfo);
    outputs_ = describe(session_, api->SessionGetOutputCount, api->SessionGetOutputName, api->SessionGetOutputTypeInfo);
  } catch (...) {
    api->ReleaseSession(session_);
    throw;
  }
}

const Node* Session::node(const std::string& name) const {
  const auto found = nodes_.find(name);
  return found == nodes_.end() ? nullptr : found->second;
}

Session::~Session() {
  if (session_) runtime->api->ReleaseSession(session_);
}

}  // namespace espalier
