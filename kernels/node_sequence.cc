// See node_sequence.h.
#include "node_sequence.h"

#include <algorithm>

namespace espalier {

NodeSequence::NodeSequence(const Session& session, const std::vector<NodeSpec>& nodes) {
  const auto placeOf = [&](const std::string& name) -> int {
    if (name.empty()) return -1;
    const size_t known = place(name);
    if (known == values_.size()) values_.push_back(name);
    return static_cast<int>(known);
  };
  for (const auto* list : {&session.inputs(), &session.outputs()})
    for (const auto& value : *list) placeOf(value.name);
  const size_t bound = values_.size();
  for (const NodeSpec& spec : nodes) {
    Step step{session.node(spec.name), {}, {}, {}};
    if (!step.node) throw std::runtime_error("the model has no node \"" + spec.name + "\" of our operators");
    for (const auto& name : spec.inputs) step.inputs.push_back(placeOf(name));
    for (const auto& name : spec.outputs) step.outputs.push_back(placeOf(name));
    nodes_.push_back(std::move(step));
  }
  for (size_t value = bound; value < values_.size(); value++) {
    const auto uses = [&](const Step& step) {
      const int place = static_cast<int>(value);
      return std::count(step.inputs.begin(), step.inputs.end(), place) + std::count(step.outputs.begin(), step.outputs.end(), place) > 0;
    };
    std::find_if(nodes_.rbegin(), nodes_.rend(), uses)->dead.push_back(static_cast<int>(value));
  }
}

size_t NodeSequence::place(const std::string& value) const {
  return static_cast<size_t>(std::find(values_.begin(), values_.end(), value) - values_.begin());
}

NodeSequence::Run::~Run() {
  while (!own.empty()) free(own.back());
}
void NodeSequence::Run::free(int place) {
  const auto found = std::find(own.begin(), own.end(), place);
  if (found == own.end()) return;
  Tensor& tensor = tensors[static_cast<size_t>(place)];
  OnnxRuntime::get().arena.free(tensor.data);
  tensor = {};
  own.erase(found);
}

/// Inputs and outputs of one node.
class NodeSequence::NodeContext : public RunContext {
 public:
  NodeContext(const Step& step, Run& run) : step_(step), run_(run) {}
  const char* problem = nullptr;

  Tensor input(int i) override {
    if (i < 0 || static_cast<size_t>(i) >= step_.inputs.size() || step_.inputs[static_cast<size_t>(i)] < 0) return {};
    return run_.tensors[static_cast<size_t>(step_.inputs[static_cast<size_t>(i)])];
  }

  Tensor output(int i, const int64_t* dims, int rank) override {
    if (i < 0 || static_cast<size_t>(i) >= step_.outputs.size() || step_.outputs[static_cast<size_t>(i)] < 0) return {};
    const int place = step_.outputs[static_cast<size_t>(i)];
    Tensor& tensor = run_.tensors[static_cast<size_t>(place)];
    if (tensor.data) {  // bound
      if (tensor.rank == rank && std::equal(dims, dims + rank, tensor.dims)) return tensor;
      problem = "an output has another shape than the memory it is bound to";
      return {};
    }
    tensor.dtype = step_.node->outputType(static_cast<size_t>(i));
    tensor.rank = rank;
    std::copy(dims, dims + rank, tensor.dims);
    const size_t bytes = static_cast<size_t>(tensor.size()) * bytesOf(tensor.dtype);
    tensor.data = OnnxRuntime::get().arena.allocate(std::max<size_t>(bytes, 1));
    if (tensor.data) run_.own.push_back(place);
    else problem = "out of memory";
    return tensor;
  }

 private:
  const Step& step_;
  Run& run_;
};

void NodeSequence::runNode(size_t n, Run& run) const {
  const Step& step = nodes_[n];
  NodeContext context(step, run);
  const char* message = step.node->run(context);
  if (context.problem) message = context.problem;
  if (message) throw std::runtime_error(step.node->describe(message));
  for (const int place : step.dead) run.free(place);
}

}  // namespace espalier
