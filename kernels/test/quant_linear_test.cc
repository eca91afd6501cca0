// QuantLinear, its gradient and its row norms against a double reference in every format, and their share of the
// ceiling. Alone it checks; with `bench [threads] [rows] [format] [1b] [strict]` it times. By hand, for one instruction set:
//   g++ -std=c++17 -O3 -pthread -DESPALIER_ISA_AVX2=1 -mavx2 -mfma -mf16c kernels/test/quant_linear_test.cc
//     kernels/ops/quant_linear.cc kernels/cpu/ceiling.cc -o quant_linear_test
#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>

#include "../cpu/ceiling.h"
#include "../ops/dequant.h"
#include "mock_context.h"

using namespace espalier;

namespace {

std::mt19937 generator(7);
float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }
int failures = 0;

void expect(bool ok, const std::string& what, double got = 0, double limit = 0) {
  if (ok) return;
  failures++;
  std::printf("FAILED %s: %g > %g\n", what.c_str(), got, limit);
}

/// Memory of a tensor, with NaN beyond its end so that an overrun shows.
struct Data {
  std::vector<char> bytes;
  Tensor tensor;
  template <typename T> T* as() { return tensor.as<T>(); }
};
size_t sizeOf(DType t) {
  switch (t) {
    case DType::u8: case DType::i8: return 1;
    case DType::f16: case DType::bf16: return 2;
    case DType::i64: return 8;
    default: return 4;
  }
}
Data make(DType dtype, std::vector<int64_t> dims) {
  Data d;
  d.tensor.dtype = dtype;
  d.tensor.rank = static_cast<int32_t>(dims.size());
  int64_t n = 1;
  for (size_t i = 0; i < dims.size(); i++) n *= d.tensor.dims[i] = dims[i];
  const size_t bytes = static_cast<size_t>(n) * sizeOf(dtype);
  d.bytes.assign(bytes + 128, static_cast<char>(0xff));
  auto at = reinterpret_cast<uintptr_t>(d.bytes.data());
  d.tensor.data = reinterpret_cast<void*>((at + 63) / 64 * 64);
  memset(d.tensor.data, 0, bytes);
  return d;
}
void set(Data& d, int64_t i, float x) {
  if (d.tensor.dtype == DType::f32) d.as<float>()[i] = x;
  else d.as<bf16>()[i] = narrow(x);
}
double get(const Tensor& t, int64_t i) { return t.dtype == DType::f32 ? t.as<float>()[i] : toFloat(t.as<bf16>()[i]); }
Data activation(DType dtype, int64_t rows, int64_t columns) {
  Data d = make(dtype, {rows, columns});
  for (int64_t i = 0; i < rows * columns; i++) set(d, i, uniform(-1, 1));
  return d;
}
uint16_t toHalf(float x) {  // positive normal halves only, truncated
  const uint32_t u = bitsOf(x);
  return static_cast<uint16_t>(((u >> 31) << 15) | ((((u >> 23) & 255) - 112) << 10) | ((u >> 13) & 1023));
}

struct Case {
  int format, block;
  DType dtype;  // of W0
  int64_t out, columns;
  Data w[4];
  std::vector<double> dense;  // the definition, in double
};

Case makeWeights(int format, int block, int64_t out, int64_t columns, DType half = DType::bf16) {
  Case c;
  c.format = format, c.block = block, c.out = out, c.columns = columns;
  c.dense.resize(static_cast<size_t>(out * columns));
  const int64_t blocks = out * columns / block;
  if (format == 0 || format == 1) {
    c.w[0] = make(format == 0 ? DType::f32 : half, {out, columns});
    for (int64_t i = 0; i < out * columns; i++) {
      const float x = uniform(-0.1f, 0.1f);
      if (c.w[0].tensor.dtype == DType::f16) {
        c.w[0].as<uint16_t>()[i] = toHalf(std::fabs(x) + 1e-3f);
        c.dense[static_cast<size_t>(i)] = halfToFloat(c.w[0].as<uint16_t>()[i]);
      } else {
        set(c.w[0], i, x);
        c.dense[static_cast<size_t>(i)] = get(c.w[0].tensor, i);
      }
    }
    return c;
  }
  c.w[0] = make(format == 3 ? DType::i8 : DType::u8, {out, format == 3 ? columns : columns / 2});
  for (int64_t i = 0; i < c.w[0].tensor.size(); i++) c.w[0].as<uint8_t>()[i] = static_cast<uint8_t>(generator());
  const auto code = [&](int64_t i) { return format == 3 ? c.w[0].as<int8_t>()[i] : c.w[0].as<uint8_t>()[i / 2] >> (i % 2 * 4) & 15; };
  if (format == 4) {
    const int64_t groups = (blocks + 255) / 256;
    c.w[1] = make(DType::u8, {blocks}), c.w[2] = make(DType::f32, {groups}), c.w[3] = make(DType::f32, {1});
    for (int64_t b = 0; b < blocks; b++) c.w[1].as<uint8_t>()[b] = static_cast<uint8_t>(generator());
    for (int64_t g = 0; g < groups; g++) c.w[2].as<float>()[g] = uniform(0.01f, 0.02f);
    c.w[3].as<float>()[0] = 0.1f;
  } else {
    c.w[1] = make(DType::f16, {out, columns / block});
    if (format == 2) c.w[2] = make(DType::f16, {out, columns / block});
    for (int64_t b = 0; b < blocks; b++) {
      c.w[1].as<uint16_t>()[b] = toHalf(format == 3 ? uniform(0.0005f, 0.001f) : uniform(0.01f, 0.02f));
      if (format == 2) c.w[2].as<uint16_t>()[b] = static_cast<uint16_t>(toHalf(uniform(0.05f, 0.15f)) | 0x8000);
    }
  }
  for (int64_t i = 0; i < out * columns; i++) {
    const int64_t b = i / block;
    double w = 0;
    if (format == 4) {
      volatile const float product = kDynamicMap[c.w[1].as<uint8_t>()[b]] * c.w[2].as<float>()[b / 256];
      w = static_cast<double>(kNf4[code(i)]) * static_cast<float>(product + 0.1f);
    } else {
      const double scale = halfToFloat(c.w[1].as<uint16_t>()[b]);
      w = format == 2 ? code(i) * scale + halfToFloat(c.w[2].as<uint16_t>()[b]) : format == 3 ? code(i) * scale : (code(i) - 8) * scale;
    }
    c.dense[static_cast<size_t>(i)] = w;
  }
  const auto turn = [&](Data& d, auto unit) {
    if (!d.tensor) return;
    const std::vector<uint8_t> rowMajor(d.as<uint8_t>(), d.as<uint8_t>() + d.tensor.size() * static_cast<int64_t>(sizeOf(d.tensor.dtype)));
    layInStripes<decltype(unit)>(rowMajor.data(), d.as<uint8_t>(), out, static_cast<int64_t>(rowMajor.size() / sizeof unit) / out);
  };
  turn(c.w[0], uint32_t{});
  if (format != 4) turn(c.w[1], uint16_t{}), turn(c.w[2], uint16_t{});
  return c;
}

struct AdapterData {
  Data arena, table;
  int64_t rank, aOffset, bOffset;
  float scaling;
};
/// `slots` adapters; slot s has rank `rank` (slot 1: 0 when there are several).
AdapterData makeAdapters(int64_t rank, int64_t out, int64_t columns, int64_t slots = 1) {
  AdapterData d{make(DType::f32, {slots * (rank * (out + columns) + 64)}), make(DType::i64, {slots, 8}), rank, 32, 0, 0.5f};
  for (int64_t i = 0; i < d.arena.tensor.size(); i++) d.arena.as<float>()[i] = uniform(-0.2f, 0.2f);
  for (int64_t s = 0; s < slots; s++) {
    int64_t* entry = d.table.as<int64_t>() + s * 8;
    entry[0] = 32 + s * (rank * (out + columns) + 16);
    entry[1] = entry[0] + rank * columns + 16;
    entry[2] = s == 1 ? 0 : rank;
    entry[3] = bitsOf(0.5f + static_cast<float>(s));
  }
  d.bOffset = d.table.as<int64_t>()[1];
  return d;
}

double relative(const Tensor& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); i++) {
    const double d = get(got, static_cast<int64_t>(i)) - want[i];
    difference += d * d;
    norm += want[i] * want[i];
    if (!(d == d)) return INFINITY;
  }
  return std::sqrt(difference / (norm + 1e-300));
}

using Matrix = std::vector<double>;
Matrix dense(const Tensor& t) {
  Matrix m(static_cast<size_t>(t.size()));
  for (size_t i = 0; i < m.size(); i++) m[i] = get(t, static_cast<int64_t>(i));
  return m;
}
Matrix dense(const float* p, int64_t n) { return Matrix(p, p + n); }
/// c[m, n] = a[m, k] b, b [k, n] or (transposed) [n, k]; aT: a is [k, m]
Matrix product(const Matrix& a, const Matrix& b, int64_t m, int64_t n, int64_t k, bool aT, bool bT) {
  Matrix c(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0;
      for (int64_t l = 0; l < k; l++)
        sum += a[static_cast<size_t>(aT ? l * m + i : i * k + l)] * b[static_cast<size_t>(bT ? j * k + l : l * n + j)];
      c[static_cast<size_t>(i * n + j)] = sum;
    }
  return c;
}

bool fastIsHalf() {
#if defined(ESPALIER_ISA_AVX512BF16)
  return true;
#else
  return false;
#endif
}

enum Extra { kPlain = 0, kBias = 1, kResidual = 2, kAdapterX = 4, kSlots = 8, kWeight = 16 };

void checkForward(Case& w, int64_t rows, int64_t rank, DType type, DType outType, bool strict, int extra) {
  const std::string name = "forward format " + std::to_string(w.format) + " block " + std::to_string(w.block) + " [" + std::to_string(rows) + "," +
                           std::to_string(w.columns) + "]->" + std::to_string(w.out) + " rank " + std::to_string(rank) + " type " +
                           std::to_string(static_cast<int>(type)) + " strict " + std::to_string(strict) + " extra " + std::to_string(extra);
  Data x = activation(type, rows, w.columns), xa = activation(type, rows, w.columns);
  Data bias = activation(DType::f32, 1, w.out), residual = activation(DType::f32, rows, w.out);
  bias.tensor.rank = 1, bias.tensor.dims[0] = w.out;
  const int64_t slotCount = extra & kSlots ? 3 : 1;
  AdapterData adapter = makeAdapters(rank, w.out, w.columns, slotCount);
  Data rowSlot = make(DType::i32, {rows}), rowWeight = make(DType::f32, {rows});
  for (int64_t i = 0; i < rows; i++) rowSlot.as<int32_t>()[i] = static_cast<int32_t>(i % 4) - 1, rowWeight.as<float>()[i] = uniform(0, 2);
  Data y = make(outType, {rows, w.out});

  const Matrix wd = w.dense, xd = dense(x.tensor), ad = extra & kAdapterX ? dense(xa.tensor) : xd;
  Matrix want = product(xd, wd, rows, w.out, w.columns, false, true);
  for (int64_t s = 0; s < slotCount; s++) {
    const int64_t* entry = adapter.table.as<int64_t>() + s * 8;
    if (rank == 0 || entry[2] == 0) continue;
    const Matrix t = product(ad, dense(adapter.arena.as<float>() + entry[0], rank * w.columns), rows, rank, w.columns, false, true);
    const Matrix delta = product(t, dense(adapter.arena.as<float>() + entry[1], rank * w.out), rows, w.out, rank, false, true);
    for (int64_t i = 0; i < rows; i++) {
      if (extra & kSlots && rowSlot.as<int32_t>()[i] != s) continue;
      const double factor = floatOf(static_cast<uint32_t>(entry[3])) * (extra & kWeight ? rowWeight.as<float>()[i] : 1.f);
      for (int64_t n = 0; n < w.out; n++) want[static_cast<size_t>(i * w.out + n)] += factor * delta[static_cast<size_t>(i * w.out + n)];
    }
  }
  for (int64_t i = 0; i < rows * w.out; i++) {
    if (extra & kBias) want[static_cast<size_t>(i)] += bias.as<float>()[i % w.out];
    if (extra & kResidual) want[static_cast<size_t>(i)] += residual.as<float>()[i];
  }

  MockAttributes attributes;
  attributes.values = {{"format", w.format}, {"block", w.block}, {"strict", strict}};
  auto kernel = makeKernel("QuantLinear", attributes, outType);
  std::vector<char> first;
  for (int threads : {2, 1, 5}) {
    Team team(threads);
    MockContext context(team);
    context.poison = true;
    const Tensor none;
    context.inputs = std::vector<Tensor>{x.tensor, w.w[0].tensor, w.w[1].tensor, w.w[2].tensor, w.w[3].tensor, extra & kBias ? bias.tensor : none,
                      rank ? adapter.arena.tensor : none, rank ? adapter.table.tensor : none, extra & kSlots ? rowSlot.tensor : none,
                      extra & kWeight ? rowWeight.tensor : none, extra & kAdapterX ? xa.tensor : none, extra & kResidual ? residual.tensor : none};
    context.outputs = std::vector<Tensor>{y.tensor};
    const char* problem = kernel->run(context);
    if (problem) return expect(false, name + ": " + problem);
    if (first.empty()) first = y.bytes;
    else expect(first == y.bytes, name + ": bits differ with the number of threads");
  }
  const bool exact = strict || !fastIsHalf();
  const double limit = outType == DType::bf16 ? (exact ? 3e-3 : 6e-3) : exact ? 2e-6 : 5e-3, got = relative(y.tensor, want);
  expect(got <= limit, name, got, limit);

  // A row's bits do not depend on the other rows.
  if (rows > 3) {
    Team team(1);
    MockContext context(team);
    Data xr = make(type, {1, w.columns}), xar = make(type, {1, w.columns}), yr = make(outType, {1, w.out});
    const int64_t row = rows - 2;
    memcpy(xr.tensor.data, x.as<char>() + row * w.columns * static_cast<int64_t>(sizeOf(type)), static_cast<size_t>(w.columns) * sizeOf(type));
    memcpy(xar.tensor.data, xa.as<char>() + row * w.columns * static_cast<int64_t>(sizeOf(type)), static_cast<size_t>(w.columns) * sizeOf(type));
    Tensor one = rowSlot.tensor, weight = rowWeight.tensor, rest = residual.tensor, none;
    one.dims[0] = weight.dims[0] = rest.dims[0] = 1;
    one.data = rowSlot.as<int32_t>() + row, weight.data = rowWeight.as<float>() + row, rest.data = residual.as<float>() + row * w.out;
    context.inputs = std::vector<Tensor>{xr.tensor, w.w[0].tensor, w.w[1].tensor, w.w[2].tensor, w.w[3].tensor, extra & kBias ? bias.tensor : none,
                      rank ? adapter.arena.tensor : none, rank ? adapter.table.tensor : none, extra & kSlots ? one : none,
                      extra & kWeight ? weight : none, extra & kAdapterX ? xar.tensor : none, extra & kResidual ? rest : none};
    context.outputs = std::vector<Tensor>{yr.tensor};
    kernel->run(context);
    expect(!memcmp(yr.tensor.data, y.as<char>() + row * w.out * static_cast<int64_t>(sizeOf(outType)), static_cast<size_t>(w.out) * sizeOf(outType)),
           name + ": a row depends on the others");
  }
}

void checkBackward(Case& w, int64_t rows, int64_t rank, DType type, DType outType, bool strict, int extra) {
  const std::string name = "backward format " + std::to_string(w.format) + " block " + std::to_string(w.block) + " [" + std::to_string(rows) + "," +
                           std::to_string(w.columns) + "]->" + std::to_string(w.out) + " rank " + std::to_string(rank) + " type " +
                           std::to_string(static_cast<int>(type)) + " strict " + std::to_string(strict) + " extra " + std::to_string(extra);
  Data x = activation(type, rows, w.columns), xa = activation(type, rows, w.columns), dY = activation(type, rows, w.out);
  Data dXin = activation(DType::f32, rows, w.columns);
  AdapterData adapter = makeAdapters(rank, w.out, w.columns);
  const int64_t bAt = adapter.bOffset - adapter.aOffset, size = rank ? bAt + rank * w.out + 5 : 1;
  Data before = activation(DType::f32, 1, size), gradient = make(DType::f32, {size});
  before.tensor.rank = 1, before.tensor.dims[0] = size;
  Data dX = make(outType, {rows, w.columns}), dXa = make(outType, {rows, w.columns});

  const Matrix xd = dense(extra & kAdapterX ? xa.tensor : x.tensor), yd = dense(dY.tensor);
  Matrix wantX = product(yd, w.dense, rows, w.columns, w.out, false, false), wantXa(wantX.size()), wantG = dense(before.tensor);
  if (rank) {
    const Matrix a = dense(adapter.arena.as<float>() + adapter.aOffset, rank * w.columns), b = dense(adapter.arena.as<float>() + adapter.bOffset, rank * w.out);
    Matrix u = product(yd, b, rows, rank, w.out, false, false), t = product(xd, a, rows, rank, w.columns, false, true);
    for (auto& v : u) v *= 0.5;
    for (auto& v : t) v *= 0.5;
    const Matrix delta = product(u, a, rows, w.columns, rank, false, false);
    for (size_t i = 0; i < delta.size(); i++) (extra & kAdapterX ? wantXa : wantX)[i] += delta[i];
    const Matrix dA = product(u, xd, rank, w.columns, rows, true, false), dB = product(yd, t, w.out, rank, rows, true, false);
    for (size_t i = 0; i < dA.size(); i++) wantG[i] += dA[i];
    for (size_t i = 0; i < dB.size(); i++) wantG[static_cast<size_t>(bAt) + i] += dB[i];
  }
  if (extra & kResidual)
    for (size_t i = 0; i < wantX.size(); i++) wantX[i] += dXin.as<float>()[i];

  MockAttributes attributes;
  attributes.values = {{"format", w.format}, {"block", w.block}, {"strict", strict}};
  auto kernel = makeKernel("QuantLinearGrad", attributes, outType);
  std::vector<char> first;
  for (int threads : {2, 1, 5}) {
    Team team(threads);
    MockContext context(team);
    context.poison = true;
    const Tensor none;
    const bool inPlace = threads != 1;
    memcpy(gradient.tensor.data, before.tensor.data, static_cast<size_t>(size) * 4);
    context.inputs = std::vector<Tensor>{x.tensor, dY.tensor, w.w[0].tensor, w.w[1].tensor, w.w[2].tensor, w.w[3].tensor, rank ? adapter.arena.tensor : none,
                      rank ? adapter.table.tensor : none, inPlace ? gradient.tensor : before.tensor, extra & kAdapterX ? xa.tensor : none,
                      extra & kResidual ? dXin.tensor : none};
    context.outputs = std::vector<Tensor>{dX.tensor, gradient.tensor, dXa.tensor};
    const char* problem = kernel->run(context);
    if (problem) return expect(false, name + ": " + problem);
    std::vector<char> all = dX.bytes;
    all.insert(all.end(), gradient.bytes.begin(), gradient.bytes.end());
    all.insert(all.end(), dXa.bytes.begin(), dXa.bytes.end());
    if (first.empty()) first = all;
    else expect(first == all, name + ": bits differ with the number of threads");
    if (threads == 5) {  // without dX the gradient is the same
      std::vector<char> grown = gradient.bytes;
      memcpy(gradient.tensor.data, before.tensor.data, static_cast<size_t>(size) * 4);
      context.outputs = std::vector<Tensor>{Tensor{}, gradient.tensor};
      kernel->run(context);
      expect(grown == gradient.bytes, name + ": the gradient depends on whether dX is asked for");
    }
  }
  const bool exact = strict || !fastIsHalf();
  const double limit = exact ? 2e-6 : 6e-3, limitX = outType == DType::bf16 ? (exact ? 3e-3 : 7e-3) : limit;
  double got = relative(dX.tensor, wantX);
  expect(got <= limitX, name + " dX", got, limitX);
  if (extra & kAdapterX) {
    got = relative(dXa.tensor, wantXa);
    expect(got <= limitX, name + " dAdapterX", got, limitX);
  }
  got = relative(gradient.tensor, wantG);
  expect(got <= limit, name + " gradient", got, limit);
}

void checkRowNorms(Case& w, int64_t rank) {
  AdapterData adapter = makeAdapters(rank, w.out, w.columns);
  Data norms = make(DType::f32, {w.out});
  Matrix want(static_cast<size_t>(w.out));
  const Matrix a = dense(adapter.arena.as<float>() + adapter.aOffset, rank * w.columns), b = dense(adapter.arena.as<float>() + adapter.bOffset, rank * w.out);
  const Matrix delta = product(b, a, w.out, w.columns, rank, false, false);
  for (int64_t n = 0; n < w.out; n++) {
    double sum = 0;
    for (int64_t k = 0; k < w.columns; k++) {
      const double v = w.dense[static_cast<size_t>(n * w.columns + k)] + 0.5 * delta[static_cast<size_t>(n * w.columns + k)];
      sum += v * v;
    }
    want[static_cast<size_t>(n)] = std::sqrt(sum);
  }
  MockAttributes attributes;
  attributes.values = {{"format", w.format}, {"block", w.block}};
  Team team(2);
  MockContext context(team);
  context.inputs = std::vector<Tensor>{w.w[0].tensor, w.w[1].tensor, w.w[2].tensor, w.w[3].tensor, adapter.arena.tensor, adapter.table.tensor};
  context.outputs = std::vector<Tensor>{norms.tensor};
  const char* problem = makeKernel("QuantLinearRowNorms", attributes, DType::f32)->run(context);
  if (problem) return expect(false, problem);
  const double got = relative(norms.tensor, want);
  expect(got < 1e-6, "row norms format " + std::to_string(w.format), got, 1e-6);
}

/// Decoding is exact: one float rounding of the definition's value (NF4: of its product).
void checkDecoding(Case& w) {
  Weights weights;
  Team team(1);
  MockContext context(team);
  context.inputs = std::vector<Tensor>{w.w[0].tensor, w.w[1].tensor, w.w[2].tensor, w.w[3].tensor};
  const char* problem = readWeights(context, 0, w.format, w.block, weights);
  if (problem) return expect(false, problem);
  std::vector<float> row(static_cast<size_t>(w.columns));
  for (int64_t n = 0; n < w.out; n++)
    for (int64_t from : {int64_t{0}, int64_t{7}, int64_t{32}}) {
      if (from >= w.columns) continue;
      dequantizeRow(weights, n, from, w.columns - from, row.data());
      for (int64_t k = from; k < w.columns; k++) {
        const float want = static_cast<float>(w.dense[static_cast<size_t>(n * w.columns + k)]);
        if (row[static_cast<size_t>(k - from)] != want) return expect(false, "decoding format " + std::to_string(w.format), row[static_cast<size_t>(k - from)], want);
      }
    }
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Timing {
  double flops = 0, seconds = 0, ideal = 0;
};

/// Median-of-rounds time of one linear, forward and backward.
void bench(int threads, int64_t rows, int64_t rank, int format, int block, DType type, bool strict, bool large) {
  struct Shape {
    int64_t columns, out;
    int count;
  };
  const std::vector<Shape> shapes = large ? std::vector<Shape>{{2048, 2048, 2}, {2048, 512, 2}, {2048, 8192, 2}, {8192, 2048, 1}}
                                          : std::vector<Shape>{{576, 576, 2}, {576, 192, 2}, {576, 1536, 2}, {1536, 576, 1}};
  const CeilingKind kind = fastIsHalf() && !strict ? CeilingKind::bf16 : CeilingKind::fp32;
  Team team(threads);
  double total[2] = {}, ideal[2] = {};
  std::printf("rows %ld rank %ld format %d block %d type %s strict %d threads %d\n", static_cast<long>(rows), static_cast<long>(rank), format, block,
              type == DType::f32 ? "f32" : "bf16", strict, threads);
  for (const auto& shape : shapes) {
    Case w = makeWeights(format, block, shape.out, shape.columns);
    Data x = activation(type, rows, shape.columns), dY = activation(type, rows, shape.out);
    AdapterData adapter = makeAdapters(rank, shape.out, shape.columns);
    Data y = make(type, {rows, shape.out}), dX = make(type, {rows, shape.columns});
    Data gradient = make(DType::f32, {adapter.bOffset - adapter.aOffset + rank * shape.out + 1});
    MockAttributes attributes;
    attributes.values = {{"format", format}, {"block", block}, {"strict", strict}};
    auto forward = makeKernel("QuantLinear", attributes, type), backward = makeKernel("QuantLinearGrad", attributes, type);
    const Tensor none;
    MockContext fc(team), bc(team);
    fc.inputs = std::vector<Tensor>{x.tensor, w.w[0].tensor, w.w[1].tensor, w.w[2].tensor, w.w[3].tensor, none, adapter.arena.tensor, adapter.table.tensor};
    fc.outputs = std::vector<Tensor>{y.tensor};
    bc.inputs = std::vector<Tensor>{x.tensor, dY.tensor, w.w[0].tensor, w.w[1].tensor, w.w[2].tensor, w.w[3].tensor, adapter.arena.tensor, adapter.table.tensor, gradient.tensor};
    bc.outputs = std::vector<Tensor>{dX.tensor, gradient.tensor};
    const double n = static_cast<double>(rows), base = 2 * n * shape.columns * shape.out, thin = 2 * n * rank * (shape.columns + shape.out);
    const double flops[2] = {base + thin, base + 2 * thin};
    std::vector<double> share[2], times[2];
    double fastest[2] = {1e9, 1e9};
    for (int round = 0; round < 7; round++) {
      const double ceiling = measureCeiling(kind, threads, 12) * 1e9;
      for (int pass = 0; pass < 2; pass++) {
        Kernel& kernel = pass ? *backward : *forward;
        MockContext& context = pass ? bc : fc;
        if (const char* problem = kernel.run(context)) std::printf("%s\n", problem), std::exit(1);
        const int repeats = std::max(3, static_cast<int>(0.02 / (flops[pass] / ceiling)));
        double sum = 0;
        for (int i = 0; i < repeats; i++) {
          const double start = now();
          kernel.run(context);
          const double took = now() - start;
          sum += took;
          fastest[pass] = std::min(fastest[pass], took);
        }
        share[pass].push_back(flops[pass] / (sum / repeats) / ceiling);
        times[pass].push_back(sum / repeats);
      }
    }
    std::printf("  %5ld -> %5ld", static_cast<long>(shape.columns), static_cast<long>(shape.out));
    for (int pass = 0; pass < 2; pass++) {
      std::sort(share[pass].begin(), share[pass].end());
      std::sort(times[pass].begin(), times[pass].end());
      const double median = share[pass][3], time = times[pass][3];
      total[pass] += shape.count * time;
      ideal[pass] += shape.count * time * median;
      std::printf("   %s %8.1f us  %6.1f (best %6.1f) GFLOP/s  %.3f", pass ? "backward" : "forward", time * 1e6, flops[pass] / time / 1e9,
                  flops[pass] / fastest[pass] / 1e9, median);
    }
    std::printf("   scratch %.2f / %.2f MB\n", static_cast<double>(fc.scratchBytes) / 1e6, static_cast<double>(bc.scratchBytes) / 1e6);
  }
  std::printf("  time-weighted: forward %.3f backward %.3f of the %s ceiling\n", ideal[0] / total[0], ideal[1] / total[1],
              kind == CeilingKind::bf16 ? "bf16" : "fp32");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !strcmp(argv[1], "bench")) {
    const int threads = argc > 2 ? std::atoi(argv[2]) : static_cast<int>(std::thread::hardware_concurrency());
    const int64_t rows = argc > 3 ? std::atoi(argv[3]) : 512;
    const int format = argc > 4 ? std::atoi(argv[4]) : 2;
    const bool large = argc > 5 && !strcmp(argv[5], "1b"), strict = argc > 6 && !strcmp(argv[6], "strict");
    if (!strict) bench(threads, rows, 16, format, format == 4 ? 64 : 32, DType::bf16, strict, large);
    bench(threads, rows, 16, format, format == 4 ? 64 : 32, DType::f32, strict, large);
    return 0;
  }
  struct Kind {
    int format, block;
    DType half;
  };
  for (const Kind kind : {Kind{0, 32, DType::f32}, {1, 32, DType::bf16}, {1, 32, DType::f16}, {2, 32, DType::bf16}, {2, 64, DType::bf16},
                          {3, 32, DType::bf16}, {4, 64, DType::bf16}, {5, 32, DType::bf16}, {5, 64, DType::bf16}}) {
    for (const auto& [out, columns] : {std::pair<int64_t, int64_t>{96, 192}, {80, 64}, {37, 128}, {4, 320}}) {
      Case w = makeWeights(kind.format, kind.block, out, columns, kind.half);
      checkDecoding(w);
      checkRowNorms(w, 5);
      for (int strict = 0; strict < 2; strict++)
        for (DType type : {DType::f32, DType::bf16}) {
          checkForward(w, 19, 16, type, type, strict, kBias | kResidual);
          checkForward(w, 33, 3, type, type, strict, kAdapterX | kWeight);
          checkForward(w, 1, 0, type, DType::f32, strict, kPlain);
          checkForward(w, 10, 17, type, type, strict, kSlots | kWeight | kResidual | kBias);
          checkForward(w, 7, 8, type, type, strict, kSlots | kAdapterX);
          checkBackward(w, 19, 16, type, type, strict, kResidual);
          checkBackward(w, 32, 5, type, type, strict, kAdapterX);
          checkBackward(w, 9, 0, type, DType::f32, strict, kPlain);
          checkBackward(w, 7, 57, type, type, strict, kAdapterX | kResidual);
        }
    }
  }
  // Several chunks of k, several blocks of rows, a k that is no multiple of the step.
  Case deep = makeWeights(2, 32, 3136, 64), wide = makeWeights(3, 64, 64, 4160), odd = makeWeights(0, 32, 17, 33);
  checkForward(wide, 70, 4, DType::f32, DType::f32, false, kResidual);
  checkForward(wide, 70, 4, DType::f32, DType::f32, true, kBias);
  checkBackward(deep, 70, 4, DType::f32, DType::f32, false, kResidual);
  checkBackward(deep, 70, 4, DType::f32, DType::f32, true, kResidual);
  checkForward(odd, 2100, 3, DType::f32, DType::f32, true, kPlain);
  checkForward(odd, 2100, 3, DType::f32, DType::f32, false, kAdapterX);
  checkBackward(odd, 2100, 3, DType::f32, DType::f32, true, kPlain);
  checkBackward(odd, 2100, 3, DType::f32, DType::f32, false, kAdapterX);
  std::printf("%d lanes, %s: %d failures\n", kLanes, fastIsHalf() ? "bf16 dot products" : "fp32", failures);
  return failures != 0;
}
