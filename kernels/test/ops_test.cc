// Every op but QuantLinear against plain double loops: forward, gradients, odd sizes, packed documents, both activation
// types, strict and fast, the same bits on 1, 2 and 3 threads. `ops_test` checks; `ops_test bench [threads]` times
// attention and the head as a share of the ceiling measured in the same run.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <random>

#include "../cpu/ceiling.h"
#include "../ops/dequant.h"
#include "mock_context.h"

using namespace espalier;

namespace {

std::mt19937 generator(11);
float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }
int failures = 0, checks = 0;

/// Memory of a tensor between NaNs, so that a read beyond its ends shows.
struct Data {
  std::vector<char> bytes;
  Tensor tensor;
  template <typename T> T* as() { return tensor.as<T>(); }
  size_t byteSize() const { return static_cast<size_t>(tensor.size()) * width(tensor.dtype); }
  static size_t width(DType t) {
    switch (t) {
      case DType::u8: case DType::i8: return 1;
      case DType::f16: case DType::bf16: return 2;
      case DType::i64: return 8;
      default: return 4;
    }
  }
};
Data make(DType dtype, std::vector<int64_t> dims) {
  Data d;
  d.tensor.dtype = dtype;
  d.tensor.rank = static_cast<int32_t>(dims.size());
  for (size_t i = 0; i < dims.size(); i++) d.tensor.dims[i] = dims[i];
  d.bytes.assign(d.byteSize() + 192, static_cast<char>(0xff));
  const auto at = reinterpret_cast<uintptr_t>(d.bytes.data());
  d.tensor.data = reinterpret_cast<void*>((at + 63) / 64 * 64 + 64);
  return d;
}
double get(const Tensor& t, int64_t i) { return static_cast<double>(t.dtype == DType::f32 ? t.as<float>()[i] : toFloat(t.as<bf16>()[i])); }
void set(Tensor& t, int64_t i, float x) {
  if (t.dtype == DType::f32) t.as<float>()[i] = x;
  else t.as<bf16>()[i] = narrow(x);
}
Data randomTensor(DType dtype, std::vector<int64_t> dims, float low = -1, float high = 1) {
  Data d = make(dtype, dims);
  for (int64_t i = 0; i < d.tensor.size(); i++) set(d.tensor, i, uniform(low, high));
  return d;
}
Data integers(std::vector<int32_t> values) {
  Data d = make(DType::i32, {static_cast<int64_t>(values.size())});
  memcpy(d.tensor.data, values.data(), values.size() * 4);
  return d;
}
Data longs(std::vector<int64_t> values, std::vector<int64_t> dims) {
  Data d = make(DType::i64, dims);
  memcpy(d.tensor.data, values.data(), values.size() * 8);
  return d;
}
Data floats(std::vector<float> values) {
  Data d = make(DType::f32, {static_cast<int64_t>(values.size())});
  memcpy(d.tensor.data, values.data(), values.size() * 4);
  return d;
}
std::vector<double> values(const Tensor& t) {
  std::vector<double> v(static_cast<size_t>(t.size()));
  for (int64_t i = 0; i < t.size(); i++) v[static_cast<size_t>(i)] = get(t, i);
  return v;
}

using Doubles = std::vector<double>;
/// Largest difference over the largest |value| (at least 1e-3) must not exceed the tolerance.
void expectClose(const std::string& what, const Tensor& got, const Doubles& want, double tolerance) {
  checks++;
  double largest = 1e-3, worst = 0;
  int64_t at = 0;
  for (size_t i = 0; i < want.size(); i++) largest = std::max(largest, std::fabs(want[i]));
  for (size_t i = 0; i < want.size(); i++) {
    const double difference = std::fabs(get(got, static_cast<int64_t>(i)) - want[i]);
    if (!(difference <= worst)) worst = difference, at = static_cast<int64_t>(i);
    if (std::isnan(difference)) break;
  }
  if (worst <= tolerance * largest) return;
  failures++;
  std::printf("FAILED %s: off by %.3g of %.3g (allowed %.1g) at %lld of %zu: got %g, want %g\n", what.c_str(), worst, largest, tolerance,
              static_cast<long long>(at), want.size(), get(got, at), want[static_cast<size_t>(at)]);
}
void expectTrue(const std::string& what, bool ok) {
  checks++;
  if (ok) return;
  failures++;
  std::printf("FAILED %s\n", what.c_str());
}

/// Runs an op on 1, 2 and 3 threads; outputs must be the same bits each time. Outputs start as NaN.
void runOp(const std::string& what, const char* op, const MockAttributes& attributes, std::vector<Tensor> inputs, std::vector<Data*> outputs,
           DType activation = DType::f32) {
  const auto kernel = makeKernel(op, attributes, activation);
  std::vector<std::vector<char>> first;
  for (int threads = 1; threads <= 3; threads++) {
    Team team(threads);
    MockContext context(team);
    context.poison = true;
    context.inputs = inputs;
    for (Data* d : outputs) {
      if (d) memset(d->tensor.data, 0xff, d->byteSize());
      context.outputs.push_back(d ? d->tensor : Tensor{});
    }
    if (const char* problem = kernel->run(context)) {
      failures++;
      std::printf("FAILED %s: %s\n", what.c_str(), problem);
      return;
    }
    for (size_t i = 0; i < outputs.size(); i++) {
      if (!outputs[i]) continue;
      const char* p = static_cast<const char*>(outputs[i]->tensor.data);
      if (threads == 1) first.resize(outputs.size()), first[i].assign(p, p + outputs[i]->byteSize());
      else expectTrue(what + ": same bits on every number of threads", !memcmp(first[i].data(), p, first[i].size()));
    }
  }
}

const char* nameOf(DType t) { return t == DType::f32 ? "f32" : "bf16"; }
double tolerance(DType t) { return t == DType::f32 ? 2e-6 : 5e-3; }
std::string label(const char* op, DType t, std::initializer_list<int64_t> sizes) {
  std::string s = std::string(op) + " " + nameOf(t);
  for (int64_t n : sizes) s += " " + std::to_string(n);
  return s;
}
const DType kTypes[] = {DType::f32, DType::bf16};

// ---- elementwise ---------------------------------------------------------------------------------------------------
void testRmsNorm(DType t, int64_t rows, int64_t width, int64_t perRow) {
  Data x = randomTensor(t, {rows, width * perRow}), w = randomTensor(DType::f32, {width}), dY = randomTensor(t, {rows, width * perRow});
  Data dXin = randomTensor(DType::f32, {rows, width * perRow}), y = make(t, {rows, width * perRow}), dX = make(t, {rows, width * perRow});
  Doubles wantY, wantDX;
  for (int64_t r = 0; r < rows * perRow; r++) {
    double squares = 0, along = 0;
    for (int64_t i = 0; i < width; i++) squares += get(x.tensor, r * width + i) * get(x.tensor, r * width + i);
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
    for (int64_t i = 0; i < width; i++) along += get(dY.tensor, r * width + i) * get(w.tensor, i) * get(x.tensor, r * width + i);
    for (int64_t i = 0; i < width; i++) {
      const double v = get(x.tensor, r * width + i);
      wantY.push_back(v * inverse * get(w.tensor, i));
      wantDX.push_back(get(dXin.tensor, r * width + i) + inverse * get(dY.tensor, r * width + i) * get(w.tensor, i) -
                       v * inverse * inverse * inverse * along / static_cast<double>(width));
    }
  }
  MockAttributes a;
  a.values["eps"] = 1e-5;
  const std::string what = label("RmsNorm", t, {rows, width, perRow});
  runOp(what, "RmsNorm", a, {x.tensor, w.tensor}, {&y}, t);
  expectClose(what, y.tensor, wantY, tolerance(t));
  runOp(what + " grad", "RmsNormGrad", a, {x.tensor, w.tensor, dY.tensor, dXin.tensor}, {&dX}, t);
  expectClose(what + " grad", dX.tensor, wantDX, tolerance(t));
}

void testRotary(DType t, int64_t rows, int64_t heads, int64_t dh, bool interleaved) {
  Data x = randomTensor(t, {rows, heads * dh}), c = make(DType::f32, {rows, dh / 2}), s = make(DType::f32, {rows, dh / 2});
  Data y = make(t, {rows, heads * dh});
  for (int64_t i = 0; i < rows * dh / 2; i++) {
    const float angle = uniform(-3, 3);
    c.as<float>()[i] = std::cos(angle);
    s.as<float>()[i] = std::sin(angle);
  }
  for (int inverse = 0; inverse < 2; inverse++) {
    Doubles want(static_cast<size_t>(rows * heads * dh));
    for (int64_t r = 0; r < rows; r++)
      for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < dh / 2; i++) {
          const int64_t base = (r * heads + h) * dh, one = base + (interleaved ? 2 * i : i), two = base + (interleaved ? 2 * i + 1 : i + dh / 2);
          const double co = get(c.tensor, r * dh / 2 + i), si = get(s.tensor, r * dh / 2 + i) * (inverse ? -1 : 1);
          want[static_cast<size_t>(one)] = get(x.tensor, one) * co - get(x.tensor, two) * si;
          want[static_cast<size_t>(two)] = get(x.tensor, two) * co + get(x.tensor, one) * si;
        }
    MockAttributes a;
    a.values = {{"head_dim", dh}, {"interleaved", interleaved}, {"inverse", inverse}};
    const std::string what = label("Rotary", t, {rows, heads, dh, interleaved, inverse});
    runOp(what, "Rotary", a, {x.tensor, c.tensor, s.tensor}, {&y}, t);
    expectClose(what, y.tensor, want, tolerance(t));
  }
}

void testSwiGlu(DType t, int64_t rows, int64_t width) {
  Data gate = randomTensor(t, {rows, width}, -20, 20), up = randomTensor(t, {rows, width}), dY = randomTensor(t, {rows, width});
  Data y = make(t, {rows, width}), dGate = make(t, {rows, width}), dUp = make(t, {rows, width});
  Doubles wantY, wantGate, wantUp;
  for (int64_t i = 0; i < rows * width; i++) {
    const double g = get(gate.tensor, i), u = get(up.tensor, i), d = get(dY.tensor, i), s = 1 / (1 + std::exp(-g));
    wantY.push_back(g * s * u);
    wantGate.push_back(d * u * s * (1 + g * (1 - s)));
    wantUp.push_back(d * g * s);
  }
  const std::string what = label("SwiGlu", t, {rows, width});
  runOp(what, "SwiGlu", {}, {gate.tensor, up.tensor}, {&y}, t);
  expectClose(what, y.tensor, wantY, tolerance(t));
  runOp(what + " grad", "SwiGluGrad", {}, {gate.tensor, up.tensor, dY.tensor}, {&dGate, &dUp}, t);
  expectClose(what + " dGate", dGate.tensor, wantGate, tolerance(t));
  expectClose(what + " dUp", dUp.tensor, wantUp, tolerance(t));
}

void testConvert(DType from, DType to, int64_t n) {
  Data x = randomTensor(from, {n}), y = make(to, {n});
  runOp("Convert", "Convert", {}, {x.tensor}, {&y}, to);
  bool ok = true;
  for (int64_t i = 0; i < n; i++) ok = ok && get(y.tensor, i) == static_cast<double>(to == DType::f32 ? static_cast<float>(get(x.tensor, i)) : toFloat(narrow(static_cast<float>(get(x.tensor, i)))));
  expectTrue(label("Convert", from, {n}) + " to " + nameOf(to), ok);
}

// The hash as the header of dropout.cc describes it, in int64 with a mask.
int64_t mask32(int64_t x) { return x & 0xffffffff; }
int64_t mixed(int64_t x) {
  x = mask32((x ^ (x >> 16)) * 0x21f0aaad);
  x = mask32((x ^ (x >> 15)) * 0x735a2d97);
  return x ^ (x >> 15);
}
int64_t stepped(int64_t k, int64_t w) { return mixed(mask32((k ^ w) + 0x9e3779b9)); }
void testDropout(DType t, int64_t rows, int64_t width) {
  Data x = randomTensor(t, {rows, width}, 1, 2), y = make(t, {rows, width});
  std::vector<int64_t> keys;
  for (int64_t r = 0; r < rows; r++) keys.push_back(r * 0x100000003 - 5);
  Data rowKeys = longs(keys, {rows}), seed = longs({-12345678901}, {1});
  MockAttributes a;
  a.values = {{"p", 0.1}, {"module", 7}};
  runOp("Dropout", "Dropout", a, {x.tensor, rowKeys.tensor, seed.tensor}, {&y}, t);
  Doubles want;
  int64_t kept = 0;
  const auto low = [](int64_t v) { return mask32(v); };
  const auto high = [](int64_t v) { return mask32(static_cast<int64_t>(static_cast<uint64_t>(v) >> 32)); };
  for (int64_t r = 0; r < rows; r++) {
    const int64_t s = -12345678901, key = keys[static_cast<size_t>(r)];
    const int64_t k = stepped(stepped(stepped(stepped(stepped(0, low(s)), high(s)), low(key)), high(key)), 7);
    for (int64_t i = 0; i < width; i++) {
      const bool keep = stepped(k, i) >= static_cast<int64_t>(static_cast<double>(0.1f) * 4294967296.0);
      kept += keep;
      want.push_back(keep ? get(x.tensor, r * width + i) / 0.9 : 0);
    }
  }
  expectClose(label("Dropout", t, {rows, width}), y.tensor, want, tolerance(t));
  const double n = static_cast<double>(rows * width);
  expectTrue("Dropout keeps its share", std::fabs(static_cast<double>(kept) - 0.9 * n) < 5 * std::sqrt(0.09 * n) + 1);
}

void testAdamW(int64_t n, double maxNorm, double weightDecay) {
  Data p = randomTensor(DType::f32, {n}), m = make(DType::f32, {n}), v = make(DType::f32, {n});
  memset(m.tensor.data, 0, m.byteSize()), memset(v.tensor.data, 0, v.byteSize());
  Doubles wantP = values(p.tensor), wantM(static_cast<size_t>(n)), wantV(static_cast<size_t>(n));
  const int64_t split = n / 3, gap = std::min<int64_t>(n - split, 5);
  Data groups = longs({0, split, split + gap, n - split - gap}, {2, 2}), perGroup = floats({1, static_cast<float>(weightDecay), 4, 0});
  for (int step = 1; step <= 4; step++) {
    Data g = randomTensor(DType::f32, {n});
    const double b1 = 1 - std::pow(0.9, step), b2 = 1 - std::pow(0.999, step);
    Data hyper = floats({0.01f, 0.9f, 0.999f, 1e-8f, static_cast<float>(b1), static_cast<float>(b2), static_cast<float>(maxNorm), 0});
    Data norm = make(DType::f32, {1}), pOut = make(DType::f32, {n}), mOut = make(DType::f32, {n}), vOut = make(DType::f32, {n});
    double squares = 0;
    const auto group = [&](int64_t i) { return i < split ? 0 : i < split + gap ? -1 : 1; };
    for (int64_t i = 0; i < n; i++) squares += group(i) < 0 ? 0 : get(g.tensor, i) * get(g.tensor, i);
    const double clip = maxNorm > 0 ? std::min(1.0, maxNorm / (std::sqrt(squares) + 1e-6)) : 1;
    for (int64_t i = 0; i < n; i++) {
      if (group(i) < 0) continue;
      const auto at = static_cast<size_t>(i);
      const double lr = 0.01 * (group(i) ? 4 : 1), wd = group(i) ? 0 : weightDecay, gradient = get(g.tensor, i) * clip;
      wantM[at] = 0.9 * wantM[at] + 0.1 * gradient;
      wantV[at] = 0.999 * wantV[at] + 0.001 * gradient * gradient;
      wantP[at] = wantP[at] * (1 - lr * wd) - lr / b1 * wantM[at] / (std::sqrt(wantV[at]) / std::sqrt(b2) + 1e-8);
    }
    runOp("AdamW", "AdamW", {}, {p.tensor, g.tensor, m.tensor, v.tensor, hyper.tensor, groups.tensor, perGroup.tensor}, {&pOut, &mOut, &vOut, &norm});
    expectClose("AdamW norm", norm.tensor, {std::sqrt(squares)}, 1e-6);
    expectClose("AdamW params", pOut.tensor, wantP, 1e-6);
    expectClose("AdamW m", mOut.tensor, wantM, 1e-6);
    double worst = 0;
    for (int64_t i = 0; i < n; i++) worst = std::max(worst, std::fabs(get(vOut.tensor, i) - wantV[static_cast<size_t>(i)]) / (wantV[static_cast<size_t>(i)] + 1e-12));
    expectTrue("AdamW v within 1e-6 relative", worst < 1e-6);
    // The same in place.
    Team team(2);
    MockContext context(team);
    context.inputs = {p.tensor, g.tensor, m.tensor, v.tensor, hyper.tensor, groups.tensor, perGroup.tensor};
    context.outputs = {p.tensor, m.tensor, v.tensor, norm.tensor};
    makeKernel("AdamW", MockAttributes{}, DType::f32)->run(context);
    expectTrue("AdamW in place", !memcmp(p.tensor.data, pOut.tensor.data, p.byteSize()) && !memcmp(v.tensor.data, vOut.tensor.data, v.byteSize()));
    // A gradient that is not finite leaves everything.
    g.as<float>()[0] = INFINITY;
    runOp("AdamW inf", "AdamW", {}, {p.tensor, g.tensor, m.tensor, v.tensor, hyper.tensor, groups.tensor, perGroup.tensor}, {&pOut, &mOut, &vOut, &norm});
    expectTrue("AdamW skips a bad step", n < 3 || (!memcmp(p.tensor.data, pOut.tensor.data, p.byteSize()) && !std::isfinite(norm.as<float>()[0])));
  }
}

// ---- attention -----------------------------------------------------------------------------------------------------
struct AttentionCase {
  std::vector<int32_t> lengths;
  int64_t heads, kvHeads, dh, window;
};
struct AttentionData {
  Data q, k, v, dOut, cu;
  MockAttributes attributes;
  int64_t rows;
};
AttentionData attentionData(const AttentionCase& c, DType t, bool strict, float spread = 1) {
  std::vector<int32_t> cu = {0};
  for (int32_t n : c.lengths) cu.push_back(cu.back() + n);
  const int64_t rows = cu.back();
  AttentionData d = {randomTensor(t, {rows, c.heads * c.dh}, -spread, spread), randomTensor(t, {rows, c.kvHeads * c.dh}, -spread, spread),
                     randomTensor(t, {rows, c.kvHeads * c.dh}), randomTensor(t, {rows, c.heads * c.dh}), integers(cu), {}, rows};
  d.attributes.values = {{"num_heads", c.heads}, {"num_kv_heads", c.kvHeads}, {"head_dim", c.dh}, {"window", c.window}, {"strict", strict},
                         {"scale", 1 / std::sqrt(static_cast<double>(c.dh))}};
  return d;
}

void testAttention(const AttentionCase& c, DType t, bool strict, float spread = 1) {
  AttentionData d = attentionData(c, t, strict, spread);
  const int64_t h = c.heads, kv = c.kvHeads, dh = c.dh, n = d.rows;
  const double scale = static_cast<double>(static_cast<float>(1 / std::sqrt(static_cast<double>(dh))));
  const auto size = [](int64_t x) { return static_cast<size_t>(x); };
  Doubles q = values(d.q.tensor), k = values(d.k.tensor), v = values(d.v.tensor), g = values(d.dOut.tensor);
  Doubles out(size(n * h * dh)), lse(size(n * h)), dQ(size(n * h * dh)), dK(size(n * kv * dh)), dV(size(n * kv * dh));
  const int32_t* cu = d.cu.as<int32_t>();
  for (size_t doc = 0; doc < c.lengths.size(); doc++)
    for (int64_t i = cu[doc]; i < cu[doc + 1]; i++)
      for (int64_t head = 0; head < h; head++) {
        const int64_t first = c.window ? std::max<int64_t>(cu[doc], i - c.window + 1) : cu[doc];
        const double* qi = &q[size((i * h + head) * dh)];
        const double* gi = &g[size((i * h + head) * dh)];
        Doubles p, dP;
        double top = -1e300, sum = 0, delta = 0;
        for (int64_t j = first; j <= i; j++) {
          double s = 0, a = 0;
          for (int64_t x = 0; x < dh; x++) {
            s += qi[x] * k[size((j * kv + head / (h / kv)) * dh + x)];
            a += gi[x] * v[size((j * kv + head / (h / kv)) * dh + x)];
          }
          p.push_back(s * scale), dP.push_back(a);
          top = std::max(top, s * scale);
        }
        for (double& s : p) sum += s = std::exp(s - top);
        for (double& s : p) s /= sum;
        for (size_t j = 0; j < p.size(); j++) delta += p[j] * dP[j];
        lse[size(i * h + head)] = top + std::log(sum);
        for (size_t j = 0; j < p.size(); j++) {
          const double dS = p[j] * (dP[j] - delta) * scale;
          const size_t at = size(((first + static_cast<int64_t>(j)) * kv + head / (h / kv)) * dh), own = size((i * h + head) * dh);
          for (size_t x = 0; x < size(dh); x++) {
            out[own + x] += p[j] * v[at + x];
            dV[at + x] += p[j] * gi[x];
            dQ[own + x] += dS * k[at + x];
            dK[at + x] += dS * qi[x];
          }
        }
      }
  std::string what = label("Attention", t, {static_cast<int64_t>(c.lengths.size()), n, h, kv, dh, c.window, strict});
  Data outT = make(t, {n, h * dh}), lseT = make(DType::f32, {n, h});
  Data dQT = make(t, {n, h * dh}), dKT = make(t, {n, kv * dh}), dVT = make(t, {n, kv * dh});
  const double exact = strict ? 5e-6 : spread > 1 ? 3e-2 : 2e-2;  // f32 inputs are rounded to bf16 as well
  runOp(what, "Attention", d.attributes, {d.q.tensor, d.k.tensor, d.v.tensor, d.cu.tensor}, {&outT, &lseT}, t);
  expectClose(what + " out", outT.tensor, out, exact);
  expectClose(what + " lse", lseT.tensor, lse, strict ? 1e-6 : 3e-3);
  runOp(what + " grad", "AttentionGrad", d.attributes,
        {d.q.tensor, d.k.tensor, d.v.tensor, outT.tensor, lseT.tensor, d.dOut.tensor, d.cu.tensor}, {&dQT, &dKT, &dVT}, t);
  expectClose(what + " dQ", dQT.tensor, dQ, exact);
  expectClose(what + " dK", dKT.tensor, dK, exact);
  expectClose(what + " dV", dVT.tensor, dV, exact);
}

/// The rows of a document are the same bits alone and packed behind another.
void testPacking(DType t, bool strict) {
  AttentionCase two = {{53, 131}, 4, 2, 64, 0}, one = {{131}, 4, 2, 64, 0};
  AttentionData both = attentionData(two, t, strict), alone = attentionData(one, t, strict);
  const auto copy = [](Data& to, Data& from) { memcpy(to.tensor.data, static_cast<char*>(from.tensor.data) + (from.byteSize() - to.byteSize()), to.byteSize()); };
  copy(alone.q, both.q), copy(alone.k, both.k), copy(alone.v, both.v), copy(alone.dOut, both.dOut);
  std::vector<std::vector<char>> kept;
  for (AttentionData* d : {&both, &alone}) {
    Data out = make(t, {d->rows, 256}), lse = make(DType::f32, {d->rows, 4}), dQ = make(t, {d->rows, 256}), dK = make(t, {d->rows, 128}), dV = make(t, {d->rows, 128});
    runOp("packing", "Attention", d->attributes, {d->q.tensor, d->k.tensor, d->v.tensor, d->cu.tensor}, {&out, &lse}, t);
    runOp("packing", "AttentionGrad", d->attributes, {d->q.tensor, d->k.tensor, d->v.tensor, out.tensor, lse.tensor, d->dOut.tensor, d->cu.tensor}, {&dQ, &dK, &dV}, t);
    for (Data* o : {&out, &lse, &dQ, &dK, &dV}) {
      const char* end = static_cast<char*>(o->tensor.data) + o->byteSize();
      kept.emplace_back(end - static_cast<int64_t>(o->byteSize()) / d->rows * 131, end);
    }
  }
  for (size_t i = 0; i < 5; i++) expectTrue(label("Attention alone = packed", t, {strict, static_cast<int64_t>(i)}), kept[i] == kept[i + 5]);
}

// ---- the head ------------------------------------------------------------------------------------------------------
struct WeightData {
  Data w[3];
  Doubles dense;
};
uint16_t toHalf(float x) {  // positive normal halves, truncated
  return static_cast<uint16_t>((((bitsOf(x) >> 23) & 255) - 112) << 10 | ((bitsOf(x) >> 13) & 1023));
}
WeightData makeWeights(int format, int64_t rows, int64_t columns, bool needDense = true) {
  WeightData d;
  if (format < 2) d.w[0] = randomTensor(format ? DType::bf16 : DType::f32, {rows, columns}, -0.5, 0.5);
  else {
    d.w[0] = make(format == 3 ? DType::i8 : DType::u8, {rows, format == 3 ? columns : columns / 2});
    for (int64_t i = 0; i < d.w[0].tensor.size(); i++) d.w[0].as<uint8_t>()[i] = static_cast<uint8_t>(generator());
    d.w[1] = make(DType::f16, {rows, columns / 32});
    d.w[2] = make(DType::f16, {rows, columns / 32});
    for (int64_t i = 0; i < d.w[1].tensor.size(); i++) {
      d.w[1].as<uint16_t>()[i] = toHalf(uniform(0.002f, 0.004f));
      d.w[2].as<uint16_t>()[i] = toHalf(uniform(0.01f, 0.02f)) | 0x8000;
    }
  }
  if (!needDense) return d;
  Team team(1);
  MockContext context(team);
  for (Data& w : d.w) context.inputs.push_back(w.tensor);
  Weights weights;
  expectTrue("weights", !readWeights(context, 0, format, 32, weights));
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t r = 0; r < rows; r++) {
    dequantizeRow(weights, r, 0, columns, row.data());
    d.dense.insert(d.dense.end(), row.begin(), row.end());
  }
  return d;
}

void testEmbedding(DType t, int format, int64_t rows, int64_t columns) {
  WeightData w = makeWeights(format, rows, columns);
  Data ids = integers({0, static_cast<int32_t>(rows) - 1, 3 % static_cast<int32_t>(rows), 0}), y = make(t, {4, columns});
  Doubles want;
  for (int i = 0; i < 4; i++)
    for (int64_t c = 0; c < columns; c++) want.push_back(w.dense[static_cast<size_t>(ids.as<int32_t>()[i] * columns + c)]);
  MockAttributes a;
  a.values = {{"format", format}, {"block", 32}};
  runOp("Embedding", "Embedding", a, {ids.tensor, w.w[0].tensor, w.w[1].tensor, w.w[2].tensor}, {&y}, t);
  expectClose(label("Embedding", t, {format, rows, columns}), y.tensor, want, tolerance(t));
}

void testHead(DType t, bool strict, int format, int64_t n, int64_t m, int64_t columns, int64_t vocabulary, float temperature, float softcap) {
  WeightData w = makeWeights(format, vocabulary, columns);
  // A step of 1 / 64 that bf16 holds exactly; some rows confident of their label.
  Data h = randomTensor(t, {n, columns}), entropy = make(DType::f32, {m}), lse = make(DType::f32, {m}), logps = make(DType::f32, {m});
  std::vector<int32_t> labels, rows;
  for (int64_t i = 0; i < m; i++) rows.push_back(static_cast<int32_t>((i * 7 + 3) % n));
  if (n == m) for (int64_t i = 0; i < m; i++) rows[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  std::sort(rows.begin(), rows.end());
  for (int64_t i = 0; i < m; i++) labels.push_back(i % 5 == 4 ? -100 : static_cast<int32_t>(generator() % static_cast<uint32_t>(vocabulary)));
  labels[0] = static_cast<int32_t>(vocabulary) - 1;
  for (int64_t i = 0; i < m; i += 3)
    if (labels[static_cast<size_t>(i)] >= 0)
      for (int64_t c = 0; c < columns; c++)
        set(h.tensor, rows[static_cast<size_t>(i)] * columns + c,
            static_cast<float>(w.dense[static_cast<size_t>(labels[static_cast<size_t>(i)] * columns + c)]) * 4.f);
  Data dLogps = randomTensor(DType::f32, {m}), dEntropy = randomTensor(DType::f32, {m}), dLse = randomTensor(DType::f32, {m});
  const double logitScale = 0.75;
  Doubles wantLogps, wantEntropy, wantLse, wantGrad(static_cast<size_t>(n * columns)), wantFused(static_cast<size_t>(n * columns));
  for (int64_t i = 0; i < m; i++) {
    const int64_t row = rows[static_cast<size_t>(i)], target = labels[static_cast<size_t>(i)];
    Doubles x, slope;
    double top = -1e300, sum = 0, e = 0;
    for (int64_t v = 0; v < vocabulary; v++) {
      double s = 0;
      for (int64_t c = 0; c < columns; c++) s += get(h.tensor, row * columns + c) * w.dense[static_cast<size_t>(v * columns + c)];
      s *= logitScale;
      slope.push_back(logitScale / static_cast<double>(temperature));
      if (softcap > 0) {
        const double th = std::tanh(s / static_cast<double>(softcap));
        slope.back() *= 1 - th * th;
        s = static_cast<double>(softcap) * th;
      }
      x.push_back(s / static_cast<double>(temperature));
      top = std::max(top, x.back());
    }
    for (double s : x) sum += std::exp(s - top);
    const double l = top + std::log(sum);
    for (double s : x) e -= std::exp(s - l) * (s - l);
    wantLse.push_back(l), wantEntropy.push_back(e), wantLogps.push_back(target < 0 ? 0 : x[static_cast<size_t>(target)] - l);
    for (int64_t v = 0; v < vocabulary; v++) {
      const double p = std::exp(x[static_cast<size_t>(v)] - l), dLogp = target < 0 ? 0 : get(dLogps.tensor, i);
      const double fused = dLogp * ((v == target) - p) * slope[static_cast<size_t>(v)];
      const double all = fused + (get(dLse.tensor, i) * p - get(dEntropy.tensor, i) * p * (x[static_cast<size_t>(v)] - l + e)) * slope[static_cast<size_t>(v)];
      for (int64_t c = 0; c < columns; c++) {
        wantFused[static_cast<size_t>(row * columns + c)] += fused * w.dense[static_cast<size_t>(v * columns + c)];
        wantGrad[static_cast<size_t>(row * columns + c)] += all * w.dense[static_cast<size_t>(v * columns + c)];
      }
    }
  }
  MockAttributes a;
  a.values = {{"format", format}, {"block", 32}, {"strict", strict}, {"scale", logitScale}, {"softcap", softcap}};
  Data labelData = integers(labels), rowData = integers(rows), heat = floats({temperature}), dH = make(t, {n, columns});
  const Tensor w0 = w.w[0].tensor, w1 = w.w[1].tensor, w2 = w.w[2].tensor;
  const std::string what = label("LinearLogProb", t, {strict, format, n, m, columns, vocabulary}) + (softcap > 0 ? " softcap" : "");
  const double rowTolerance = strict ? 3e-6 : 8e-3, gradTolerance = strict ? (t == DType::f32 ? 5e-6 : 5e-3) : 1.5e-2;
  runOp(what, "LinearLogProb", a, {h.tensor, w0, w1, w2, {}, labelData.tensor, rowData.tensor, heat.tensor}, {&logps, &entropy, &lse});
  expectClose(what + " logps", logps.tensor, wantLogps, rowTolerance);
  expectClose(what + " entropy", entropy.tensor, wantEntropy, rowTolerance);
  expectClose(what + " lse", lse.tensor, wantLse, rowTolerance);
  runOp(what + " grad", "LinearLogProbGrad", a,
        {h.tensor, w0, w1, w2, {}, labelData.tensor, rowData.tensor, lse.tensor, entropy.tensor, dLogps.tensor, dEntropy.tensor, dLse.tensor, heat.tensor},
        {&dH}, t);
  expectClose(what + " dH", dH.tensor, wantGrad, gradTolerance);
  runOp(what + " fused", "LinearLogProbFused", a,
        {h.tensor, w0, w1, w2, {}, labelData.tensor, rowData.tensor, dLogps.tensor, heat.tensor}, {&logps, &entropy, &lse, &dH}, t);
  expectClose(what + " fused logps", logps.tensor, wantLogps, rowTolerance);
  expectClose(what + " fused entropy", entropy.tensor, wantEntropy, rowTolerance);
  expectClose(what + " fused lse", lse.tensor, wantLse, rowTolerance);
  expectClose(what + " fused dH", dH.tensor, wantFused, gradTolerance);
}

// ---- the team ------------------------------------------------------------------------------------------------------
/// Every task once, whoever takes it: short loops in a row, two callers at once, loops in loops, after sleeping.
void testTeam(int threads) {
  Team team(threads);
  MockContext context(team);
  const auto once = [&](int64_t tasks) {
    std::vector<std::atomic<int>> counts(static_cast<size_t>(tasks));
    context.parallelFor(tasks, [&](int64_t task) { counts[static_cast<size_t>(task)]++; });
    return std::all_of(counts.begin(), counts.end(), [](const auto& count) { return count == 1; });
  };
  bool ok = true;
  for (int64_t loop = 0; loop < 3000; loop++) ok = once(loop % 7) && ok;
  std::atomic<int> failed{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 2; c++)
    callers.emplace_back([&] {
      for (int64_t loop = 0; loop < 500; loop++) failed += !once(loop % 5 + 2);
    });
  for (auto& caller : callers) caller.join();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::atomic<int> inner{0};
  context.parallelFor(4, [&](int64_t) { context.parallelFor(3, [&](int64_t) { inner++; }); });
  expectTrue("team of " + std::to_string(threads), ok && failed == 0 && inner == 12);
}

// ---- speed ---------------------------------------------------------------------------------------------------------
/// Median seconds of `rounds` runs.
double timeOp(const char* op, const MockAttributes& attributes, std::vector<Tensor> inputs, std::vector<Data*> outputs, DType activation, Team& team,
              int rounds = 7) {
  const auto kernel = makeKernel(op, attributes, activation);
  MockContext context(team);
  context.inputs = inputs;
  for (Data* d : outputs) context.outputs.push_back(d->tensor);
  std::vector<double> seconds;
  for (int i = 0; i <= rounds; i++) {
    const auto start = std::chrono::steady_clock::now();
    if (const char* problem = kernel->run(context)) std::printf("%s: %s\n", op, problem), std::exit(1);
    if (i) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void bench(int threads) {
  Team team(threads);
#if defined(ESPALIER_ISA_AVX512BF16)
  const bool isBf16 = true;
#else
  const bool isBf16 = false;
#endif
  const double ceiling = measureCeiling(isBf16 ? CeilingKind::bf16 : CeilingKind::fp32, threads, 300);
  const double fp32 = measureCeiling(CeilingKind::fp32, threads, 300);
  std::printf("ceiling %s %.0f GFLOP/s, fp32 %.0f (%d threads)\n", isBf16 ? "bf16" : "fp32", ceiling, fp32, threads);
  const auto report = [&](const std::string& what, double seconds, double flops, bool strict) {
    std::printf("%-58s %8.3f ms %7.1f GFLOP/s  %.2f of the %s ceiling\n", what.c_str(), seconds * 1e3, flops / seconds * 1e-9,
                flops / seconds * 1e-9 / (strict ? fp32 : ceiling), strict ? "fp32" : isBf16 ? "bf16" : "fp32");
  };
  for (const bool strict : {false, true})
    for (const AttentionCase& c : {AttentionCase{{1024}, 9, 3, 64, 0}, {{256, 256, 256, 256}, 9, 3, 64, 0}, {{4096}, 9, 3, 64, 0}, {{1024}, 32, 8, 128, 0}, {{1024}, 9, 3, 80, 0}}) {
      const DType t = strict ? DType::f32 : DType::bf16;
      AttentionData d = attentionData(c, t, strict);
      Data out = make(t, {d.rows, c.heads * c.dh}), lse = make(DType::f32, {d.rows, c.heads}), dQ = make(t, {d.rows, c.heads * c.dh});
      Data dK = make(t, {d.rows, c.kvHeads * c.dh}), dV = make(t, {d.rows, c.kvHeads * c.dh});
      double pairs = 0;
      for (double n : c.lengths) pairs += n * (n + 1) / 2;
      const double product = 2 * pairs * static_cast<double>(c.heads * c.dh);  // one of the 2 (forward) or 5 (gradient)
      const std::string what = label("Attention", t, {static_cast<int64_t>(c.lengths.size()), d.rows, c.heads, c.kvHeads, c.dh});
      report(what, timeOp("Attention", d.attributes, {d.q.tensor, d.k.tensor, d.v.tensor, d.cu.tensor}, {&out, &lse}, t, team), 2 * product, strict);
      report(what + " grad", timeOp("AttentionGrad", d.attributes, {d.q.tensor, d.k.tensor, d.v.tensor, out.tensor, lse.tensor, d.dOut.tensor, d.cu.tensor}, {&dQ, &dK, &dV}, t, team),
             5 * product, strict);
    }
  for (const bool strict : {false, true}) {
    const int64_t n = 1024, columns = 576, vocabulary = 49152;
    const DType t = strict ? DType::f32 : DType::bf16;
    WeightData w = makeWeights(3, vocabulary, columns, false);
    Data h = randomTensor(t, {n, columns}), dLogps = randomTensor(DType::f32, {n}), dH = make(t, {n, columns});
    Data logps = make(DType::f32, {n}), entropy = make(DType::f32, {n}), lse = make(DType::f32, {n});
    std::vector<int32_t> labels, rows;
    for (int32_t i = 0; i < n; i++) labels.push_back(i * 31), rows.push_back(i);
    Data labelData = integers(labels), rowData = integers(rows);
    MockAttributes a;
    a.values = {{"format", 3}, {"block", 32}, {"strict", strict}};
    const double product = 2.0 * static_cast<double>(n * columns) * static_cast<double>(vocabulary);
    const Tensor w0 = w.w[0].tensor, w1 = w.w[1].tensor;
    const std::string what = std::string("LinearLogProb 1024 x 576 x 49152 int8 ") + nameOf(t);
    report(what, timeOp("LinearLogProb", a, {h.tensor, w0, w1, {}, {}, labelData.tensor, rowData.tensor}, {&logps, &entropy, &lse}, t, team, 3), product, strict);
    report(what + " grad", timeOp("LinearLogProbGrad", a, {h.tensor, w0, w1, {}, {}, labelData.tensor, rowData.tensor, lse.tensor, entropy.tensor, dLogps.tensor}, {&dH}, t, team, 3),
           2 * product, strict);
    report(what + " fused", timeOp("LinearLogProbFused", a, {h.tensor, w0, w1, {}, {}, labelData.tensor, rowData.tensor, dLogps.tensor}, {&logps, &entropy, &lse, &dH}, t, team, 3),
           2 * product, strict);
  }
  const DType t = DType::bf16;
  const auto bandwidth = [&](const char* what, double seconds, double bytes) { std::printf("%-58s %8.3f ms %7.1f GB/s\n", what, seconds * 1e3, bytes / seconds * 1e-9); };
  Data x = randomTensor(t, {1024, 1536}), up = randomTensor(t, {1024, 1536}), y = make(t, {1024, 1536}), z = make(t, {1024, 1536});
  bandwidth("SwiGlu bf16 1024 x 1536", timeOp("SwiGlu", {}, {x.tensor, up.tensor}, {&y}, t, team), 1024 * 1536 * 6);
  bandwidth("SwiGluGrad", timeOp("SwiGluGrad", {}, {x.tensor, up.tensor, up.tensor}, {&y, &z}, t, team), 1024 * 1536 * 10);
  Data f = randomTensor(DType::f32, {1024, 576}), w = randomTensor(DType::f32, {576}), o = make(t, {1024, 576}), dX = make(DType::f32, {1024, 576}), dY = randomTensor(t, {1024, 576});
  bandwidth("RmsNorm f32 -> bf16 1024 x 576", timeOp("RmsNorm", {}, {f.tensor, w.tensor}, {&o}, t, team), 1024 * 576 * 6);
  bandwidth("RmsNormGrad", timeOp("RmsNormGrad", {}, {f.tensor, w.tensor, dY.tensor, f.tensor}, {&dX}, DType::f32, team), 1024 * 576 * 14);
  MockAttributes a;
  a.values = {{"head_dim", 64}};
  Data c = randomTensor(DType::f32, {1024, 32}), q = randomTensor(t, {1024, 576}), r = make(t, {1024, 576});
  bandwidth("Rotary bf16 1024 x 9 x 64", timeOp("Rotary", a, {q.tensor, c.tensor, c.tensor}, {&r}, t, team), 1024 * 576 * 4);
  a.values = {{"p", 0.05}};
  Data keys = longs(std::vector<int64_t>(1024, 5), {1024}), seed = longs({1}, {1});
  bandwidth("Dropout bf16 1024 x 576", timeOp("Dropout", a, {q.tensor, keys.tensor, seed.tensor}, {&r}, t, team), 1024 * 576 * 4);
  const int64_t p = 4 << 20;
  Data params = randomTensor(DType::f32, {p}), g = randomTensor(DType::f32, {p}), m = randomTensor(DType::f32, {p}), v = randomTensor(DType::f32, {p}, 0, 1), norm = make(DType::f32, {1});
  Data hyper = floats({1e-5f, 0.9f, 0.999f, 1e-8f, 0.1f, 0.001f, 1, 0}), groups = longs({0, p}, {1, 2}), perGroup = floats({1, 0});
  bandwidth("AdamW 4M", timeOp("AdamW", {}, {params.tensor, g.tensor, m.tensor, v.tensor, hyper.tensor, groups.tensor, perGroup.tensor}, {&params, &m, &v, &norm}, DType::f32, team), static_cast<double>(p) * 32);
}

void check() {
  for (int threads : {1, 2, 5}) testTeam(threads);
  for (DType t : kTypes) {
    for (auto [rows, width, heads] : {std::array<int64_t, 3>{1, 1, 1}, {7, 97, 1}, {33, 576, 1}, {5, 64, 9}, {3, 80, 2}}) testRmsNorm(t, rows, width, heads);
    for (int64_t dh : {2, 16, 32, 64, 80, 128}) testRotary(t, 19, 3, dh, false), testRotary(t, 19, 3, dh, true);
    testSwiGlu(t, 1, 1), testSwiGlu(t, 7, 97), testSwiGlu(t, 40, 1025);
    testConvert(t, DType::f32, 1025), testConvert(t, DType::bf16, 97);
    testDropout(t, 7, 97), testDropout(t, 64, 1025);
    for (int format : {0, 1, 2, 3}) testEmbedding(t, format, 29, 576), testEmbedding(t, format, 2, 32);
  }
  testAdamW(1, 0, 0), testAdamW(97, 0.5, 0.1), testAdamW(40003, 0, 0.01);
  for (DType t : kTypes)
    for (int strict = 0; strict < 2; strict++) {
      if (strict && t == DType::bf16) continue;
      for (int64_t dh : {64, 80, 128, 32, 16}) testAttention({{1, 7, 97, 33}, 9, 3, dh, 0}, t, strict);
      testAttention({{64, 128, 65, 0, 63}, 4, 4, 64, 0}, t, strict);
      testAttention({{1025}, 3, 1, 64, 0}, t, strict);
      testAttention({{300, 1, 130}, 2, 2, 64, 37}, t, strict);
      testAttention({{513}, 2, 1, 40, 129}, t, strict);
      testAttention({{7}, 1, 1, 6, 0}, t, strict), testAttention({{5}, 1, 1, 1, 2}, t, strict);
      testAttention({{200}, 2, 1, 64, 0}, t, strict, 4);
      testPacking(t, strict);
      testHead(t, strict, 0, 1, 1, 32, 7, 1, 0);
      testHead(t, strict, 1, 97, 40, 96, 1025, 0.7f, 0);
      testHead(t, strict, 3, 130, 130, 64, 1531, 1, 5);
      testHead(t, strict, 2, 33, 7, 576, 961, 1.3f, 0);
      testHead(t, strict, 0, 20, 20, 41, 500, 1, 0);
      testHead(t, strict, 3, 1100, 1100, 32, 300, 1, 0);
    }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !strcmp(argv[1], "bench")) bench(argc > 2 ? std::atoi(argv[2]) : 2);
  else check();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
