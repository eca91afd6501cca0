// The nodes of a model that has none but our operators, run one after another without ONNX Runtime between them. There a
// node costs it some 3 us and a session 15 more, together a third of a decode step, whose kernels take 6 to 30 us each.
#pragma once
#include <string>
#include <vector>

#include "session.h"

namespace espalier {

/// One node as the compiler wired it. Names of values; empty: an optional one that is absent.
struct NodeSpec {
  std::string name;
  std::vector<std::string> inputs, outputs;
};

class NodeSequence {
 public:
  /// The session has created the kernels, and checked types and wiring. Throws std::runtime_error.
  NodeSequence(const Session& session, const std::vector<NodeSpec>& nodes);

  /// The place of a value among the tensors of a run; places() where no node has it.
  size_t place(const std::string& value) const;
  size_t places() const { return values_.size(); }

  /// Runs all nodes. `tensors` has the model's inputs and outputs at their places and nothing at the others, before and
  /// after: what else the nodes make lives in the arena from the node that makes it to the last that reads it.
  /// Throws std::runtime_error naming the operator. isCancelled is asked between nodes, and ends the run.
  template <typename F> void run(std::vector<Tensor>& tensors, F&& isCancelled) const {
    Run run{tensors, {}};
    for (size_t n = 0; n < nodes_.size() && !isCancelled(); n++) runNode(n, run);
  }

 private:
  struct Step {
    const Node* node;
    std::vector<int> inputs, outputs;  // places; -1: absent
    std::vector<int> dead;             // values of the sequence that no later node reads
  };
  struct Run {
    ~Run();
    void free(int place);
    std::vector<Tensor>& tensors;
    std::vector<int> own;  // places of what lies in the arena
  };
  class NodeContext;

  void runNode(size_t n, Run& run) const;

  std::vector<std::string> values_;
  std::vector<Step> nodes_;
};

}  // namespace espalier
