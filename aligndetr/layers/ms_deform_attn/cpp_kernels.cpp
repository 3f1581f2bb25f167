// Deformable attention on the CPU, forward and backward; built on first use by cpp_build.py.
//
// README.md in this folder derives the index maths and the gradients. The library registers two
// operators and is no Python module: that needs no Python headers and compiles five times faster.
// Shapes: B batch, Q queries, S tokens over all levels, L levels, M heads, P points, D head dim.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;

// Template argument D of the kernels for a head dim that is known at run time only.
constexpr int64_t kAnyDim = 0;
// (query, head) rows that are worth a thread.
constexpr int64_t kForwardGrain = 128;
// Partial sums of a dot product: a vector register of floats.
constexpr int64_t kLanes = 8;

struct Level {
  int64_t height, width;
  int64_t first_token;
};

struct Sizes {
  int64_t batch, queries, tokens, heads, points, head_dim;
  std::vector<Level> levels;

  int64_t num_levels() const { return static_cast<int64_t>(levels.size()); }
  int64_t num_rows() const { return batch * queries * heads; }  // of (b, q, m)
  int64_t samples_per_row() const { return num_levels() * points; }
  int64_t token_stride() const { return heads * head_dim; }
  // Where a head's values of a level begin.
  int64_t level_offset(int64_t b, const Level& level, int64_t m) const {
    return (b * tokens + level.first_token) * token_stride() + m * head_dim;
  }
};

// a * b + c: one rounding where the CPU has an instruction for it, two where std::fma would be
// a slow call. Explicit, and -ffp-contract=off, so that it is known where which is used.
template <typename T>
inline T multiply_add(T a, T b, T c) {
#if defined(__FP_FAST_FMA) || defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// A location in cells, 0 the centre of the first: location * size - 0.5, in the steps and so with
// the rounding of grid_sample, which fuses the last two where the CPU can. On a cell's centre the
// slope jumps, and another rounding would give the slope of the other side.
template <typename T>
inline T pixel_position(T location, int64_t size) {
  const T grid = location * 2 - 1;
  return multiply_add(grid + 1, static_cast<T>(size) / 2, T(-0.5));
}

// A sampling point among the four cells around it.
template <typename T>
struct Sample {
  T x, y;        // position relative to the centre of the top left cell, in [0, 1)
  bool on_map;   // whether any of the cells is on the map; what follows is set only then
  bool all_on_map, top, bottom, left, right;
  int64_t cell;  // token of the top left cell, counted from the level's first; may be negative

  Sample() = default;
  Sample(const Level& level, const T* location) {
    const T px = pixel_position(location[0], level.width);
    const T py = pixel_position(location[1], level.height);
    const T column_floor = std::floor(px), row_floor = std::floor(py);
    x = px - column_floor;
    y = py - row_floor;
    // In floating point: NaN, infinity and what no integer can hold end here, unconverted.
    on_map = px >= -1 && py >= -1 && px < level.width && py < level.height;
    if (!on_map) return;
    const auto column = static_cast<int64_t>(column_floor);
    const auto row = static_cast<int64_t>(row_floor);
    left = column >= 0;
    right = column + 1 < level.width;
    top = row >= 0;
    bottom = row + 1 < level.height;
    all_on_map = left && right && top && bottom;
    cell = row * level.width + column;
  }

  // What a sample off the map is worth: 0, or NaN where its position is not finite.
  T nothing() const { return 0 * x + 0 * y; }
};

// An attention weight shared among the four cells by bilinear interpolation.
template <typename T>
struct Shares {
  T top_left, top_right, bottom_left, bottom_right;

  Shares(const Sample<T>& sample, T weight) {
    const T bottom = weight * sample.y, top = weight - bottom;
    top_right = top * sample.x;
    top_left = top - top_right;
    bottom_right = bottom * sample.x;
    bottom_left = bottom - bottom_right;
  }
};

// Where the values of the four cells begin, from the level's first; off the map: not to be read.
struct Offsets {
  int64_t top_left, top_right, bottom_left, bottom_right;

  Offsets(int64_t cell, const Level& level, int64_t token_stride)
      : top_left(cell * token_stride),
        top_right(top_left + token_stride),
        bottom_left(top_left + level.width * token_stride),
        bottom_right(bottom_left + token_stride) {}
};

// Asks for the four cells ahead of their use: the forward pass mostly waits for memory. None at
// the map's rim, where a cell may not exist. Always inline, or GCC takes a function that does no
// more than this for one without effect and drops the call.
template <typename T>
[[gnu::always_inline]] inline void prefetch(const Sample<T>& sample, const Level& level, const T* value,
                     int64_t token_stride, int64_t head_dim) {
  if (!sample.on_map || !sample.all_on_map) return;
  constexpr int64_t cache_line = 64 / sizeof(T);
  const Offsets at(sample.cell, level, token_stride);
  for (int64_t i = 0; i < head_dim; i += cache_line) {
    __builtin_prefetch(value + at.top_left + i);
    __builtin_prefetch(value + at.top_right + i);
    __builtin_prefetch(value + at.bottom_left + i);
    __builtin_prefetch(value + at.bottom_right + i);
  }
}

// sum += factor * values
template <typename T, int64_t D>
inline void add_scaled(T* __restrict sum, const T* __restrict values, T factor, int64_t head_dim) {
  const int64_t dim = D == kAnyDim ? head_dim : D;
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) sum[i] = multiply_add(factor, values[i], sum[i]);
}

// <a, b>, the partial sums always added in one order.
template <typename T, int64_t D>
inline T dot(const T* __restrict a, const T* __restrict b, int64_t head_dim) {
  const int64_t dim = D == kAnyDim ? head_dim : D;
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
#pragma omp simd
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = multiply_add(a[i + j], b[i + j], lanes[j]);
  }
  if constexpr (D % kLanes != 0 || D == kAnyDim) {
    for (; i < dim; ++i) lanes[0] = multiply_add(a[i], b[i], lanes[0]);
  }
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// sum += weight * (value sampled); `value` points to the head's values of the level.
template <typename T, int64_t D>
inline void add_sample(T* __restrict sum, const Sample<T>& sample, T weight, const Level& level,
                       const T* __restrict value, int64_t token_stride, int64_t head_dim) {
  const int64_t dim = D == kAnyDim ? head_dim : D;
  if (!sample.on_map) {
    const T nothing = weight * sample.nothing();
    if (nothing != 0) {  // NaN
      for (int64_t i = 0; i < dim; ++i) sum[i] += nothing;
    }
    return;
  }
  const Shares<T> share(sample, weight);
  const Offsets at(sample.cell, level, token_stride);
  if (sample.all_on_map) {
    const T* top_left = value + at.top_left;
    const T* top_right = value + at.top_right;
    const T* bottom_left = value + at.bottom_left;
    const T* bottom_right = value + at.bottom_right;
    // The four first, then one addition: a shorter chain of operations that wait for each other.
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      T blend = share.top_left * top_left[i];
      blend = multiply_add(share.top_right, top_right[i], blend);
      blend = multiply_add(share.bottom_left, bottom_left[i], blend);
      sum[i] += multiply_add(share.bottom_right, bottom_right[i], blend);
    }
    return;
  }
  const auto add_cell = [&](bool on_map, int64_t offset, T factor) {
    if (on_map) add_scaled<T, D>(sum, value + offset, factor, head_dim);
  };
  add_cell(sample.top && sample.left, at.top_left, share.top_left);
  add_cell(sample.top && sample.right, at.top_right, share.top_right);
  add_cell(sample.bottom && sample.left, at.bottom_left, share.bottom_left);
  add_cell(sample.bottom && sample.right, at.bottom_right, share.bottom_right);
}

template <typename T, int64_t D>
void forward_kernel(const Sizes& sizes, const T* value, const T* locations, const T* weights,
                    T* out) {
  const int64_t dim = D == kAnyDim ? sizes.head_dim : D;
  at::parallel_for(0, sizes.num_rows(), kForwardGrain, [&](int64_t begin, int64_t end) {
    std::vector<Sample<T>> samples(sizes.samples_per_row());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t m = row % sizes.heads, b = row / (sizes.heads * sizes.queries);
      const T* location = locations + row * sizes.samples_per_row() * 2;
      auto sample = samples.begin();
      for (const Level& level : sizes.levels) {
        const T* level_value = value + sizes.level_offset(b, level, m);
        for (int64_t p = 0; p < sizes.points; ++p, ++sample, location += 2) {
          *sample = Sample<T>(level, location);
          prefetch(*sample, level, level_value, sizes.token_stride(), dim);
        }
      }
      const T* weight = weights + row * sizes.samples_per_row();
      T* sum = out + row * dim;
      for (int64_t i = 0; i < dim; ++i) sum[i] = 0;
      sample = samples.begin();
      for (const Level& level : sizes.levels) {
        const T* level_value = value + sizes.level_offset(b, level, m);
        for (int64_t p = 0; p < sizes.points; ++p, ++sample, ++weight) {
          add_sample<T, D>(sum, *sample, *weight, level, level_value, sizes.token_stride(), dim);
        }
      }
    }
  });
}

// Gradients of one sample. `value` and `grad_value` point to the head's values of the level.
template <typename T, int64_t D>
inline void sample_backward(const Sample<T>& sample, T weight, const Level& level,
                            const T* grad_out, const T* value, T* grad_value, T* grad_location,
                            T* grad_weight, int64_t token_stride, int64_t head_dim) {
  T top_left = 0, top_right = 0, bottom_left = 0, bottom_right = 0;  // <grad_out, cell's value>
  if (sample.on_map) {
    const Shares<T> share(sample, weight);
    const Offsets at(sample.cell, level, token_stride);
    const auto visit_cell = [&](bool on_map, int64_t offset, T factor) {
      if (!on_map) return T(0);
      add_scaled<T, D>(grad_value + offset, grad_out, factor, head_dim);
      return dot<T, D>(grad_out, value + offset, head_dim);
    };
    top_left = visit_cell(sample.top && sample.left, at.top_left, share.top_left);
    top_right = visit_cell(sample.top && sample.right, at.top_right, share.top_right);
    bottom_left = visit_cell(sample.bottom && sample.left, at.bottom_left, share.bottom_left);
    bottom_right = visit_cell(sample.bottom && sample.right, at.bottom_right, share.bottom_right);
  }
  // Off the map these are zeros times x and y: NaN where the position is, as in the reference.
  const T x = sample.x, y = sample.y;
  const T top = top_left * (1 - x) + top_right * x;
  const T bottom = bottom_left * (1 - x) + bottom_right * x;
  const T slope_x = (top_right - top_left) * (1 - y) + (bottom_right - bottom_left) * y;
  const T slope_y = (bottom_left - top_left) * (1 - x) + (bottom_right - top_right) * x;
  *grad_weight = top * (1 - y) + bottom * y;
  grad_location[0] = weight * static_cast<T>(level.width) * slope_x;
  grad_location[1] = weight * static_cast<T>(level.height) * slope_y;
}

// Each task owns the (batch, head, level) slice of every gradient and goes through its queries in
// order: nothing is written twice at once, and the sums have the same order with any number of
// threads. So neither atomics nor copies are needed, and the result is deterministic.
template <typename T, int64_t D>
void backward_kernel(const Sizes& sizes, const T* value, const T* locations, const T* weights,
                     const T* grad_out, T* grad_value, T* grad_locations, T* grad_weights) {
  const int64_t dim = D == kAnyDim ? sizes.head_dim : D;
  const int64_t num_slices = sizes.batch * sizes.heads * sizes.num_levels();
  at::parallel_for(0, num_slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t l = slice % sizes.num_levels();
      const int64_t m = slice / sizes.num_levels() % sizes.heads;
      const int64_t b = slice / (sizes.num_levels() * sizes.heads);
      const Level& level = sizes.levels[l];
      const int64_t offset = sizes.level_offset(b, level, m);
      for (int64_t q = 0; q < sizes.queries; ++q) {
        const int64_t row = (b * sizes.queries + q) * sizes.heads + m;
        const int64_t first = row * sizes.samples_per_row() + l * sizes.points;
        for (int64_t k = first; k < first + sizes.points; ++k) {
          sample_backward<T, D>(Sample<T>(level, locations + 2 * k), weights[k], level,
                                grad_out + row * dim, value + offset, grad_value + offset,
                                grad_locations + 2 * k, grad_weights + k, sizes.token_stride(),
                                dim);
        }
      }
    }
  });
}

// `function` with the head dim as a constant where that is a common one, so that its loops
// become a few vector instructions.
template <typename Function>
void with_head_dim(int64_t head_dim, const Function& function) {
  switch (head_dim) {
    case 16: return function(std::integral_constant<int64_t, 16>());
    case 32: return function(std::integral_constant<int64_t, 32>());
    case 64: return function(std::integral_constant<int64_t, 64>());
    default: return function(std::integral_constant<int64_t, kAnyDim>());
  }
}

// Reads `shapes`, (h, w) of each level in a row. The kernels trust what they are given, so
// whatever could make them read beyond a tensor is refused here.
Sizes checked_sizes(const Tensor& value, at::IntArrayRef shapes, const Tensor& locations,
                    const Tensor& weights) {
  TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && shapes.size() % 2 == 0);
  Sizes sizes{value.size(0), locations.size(1), value.size(1), value.size(2),
              locations.size(4), value.size(3), {}};
  int64_t tokens = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    TORCH_CHECK(shapes[i] >= 0 && shapes[i + 1] >= 0, "negative sizes: ", shapes);
    sizes.levels.push_back({shapes[i], shapes[i + 1], tokens});
    tokens += shapes[i] * shapes[i + 1];
  }
  TORCH_CHECK(tokens == sizes.tokens, "levels hold ", tokens, " tokens, value ", sizes.tokens);
  const int64_t samples = sizes.num_rows() * sizes.samples_per_row();
  TORCH_CHECK(locations.numel() == 2 * samples && weights.numel() == samples);
  for (const Tensor& tensor : {value, locations, weights}) {
    TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == value.scalar_type());
  }
  return sizes;
}

Tensor forward(const Tensor& value, at::IntArrayRef shapes, const Tensor& locations,
               const Tensor& weights) {
  const Sizes sizes = checked_sizes(value, shapes, locations, weights);
  const int64_t embed_dim = sizes.heads * sizes.head_dim;
  Tensor out = at::empty({sizes.batch, sizes.queries, embed_dim}, value.options());
  AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "ms_deform_attn_forward", [&] {
    with_head_dim(sizes.head_dim, [&](auto dim) {
      forward_kernel<scalar_t, decltype(dim)::value>(
          sizes, value.const_data_ptr<scalar_t>(), locations.const_data_ptr<scalar_t>(),
          weights.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& value, at::IntArrayRef shapes,
                                            const Tensor& locations, const Tensor& weights,
                                            const Tensor& grad_out) {
  const Sizes sizes = checked_sizes(value, shapes, locations, weights);
  TORCH_CHECK(grad_out.is_contiguous() && grad_out.scalar_type() == value.scalar_type());
  TORCH_CHECK(grad_out.numel() == sizes.num_rows() * sizes.head_dim);
  Tensor grad_value = at::zeros_like(value);
  Tensor grad_locations = at::empty_like(locations);
  Tensor grad_weights = at::empty_like(weights);
  AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "ms_deform_attn_backward", [&] {
    with_head_dim(sizes.head_dim, [&](auto dim) {
      backward_kernel<scalar_t, decltype(dim)::value>(
          sizes, value.const_data_ptr<scalar_t>(), locations.const_data_ptr<scalar_t>(),
          weights.const_data_ptr<scalar_t>(), grad_out.const_data_ptr<scalar_t>(),
          grad_value.mutable_data_ptr<scalar_t>(), grad_locations.mutable_data_ptr<scalar_t>(),
          grad_weights.mutable_data_ptr<scalar_t>());
    });
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

TORCH_LIBRARY(aligndetr_cpp, library) {
  library.def("forward(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor");
  library.def(
      "backward(Tensor value, int[] shapes, Tensor locations, Tensor weights, Tensor grad_out)"
      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(aligndetr_cpp, CPU, library) {
  library.impl("forward", &forward);
  library.impl("backward", &backward);
}
