// Elementwise functions.
#pragma once
#include "device.cuh"

// As in src/backend/phases.rs.
enum Activation : u32 { silu = 0, gelu_tanh = 1, gelu = 2, relu = 3 };

DEVICE f32 sigmoid(f32 x) { return divide_rn(1.0f, add_rn(1.0f, expf(-x))); }

DEVICE f32 activate(u32 activation, f32 x) {
  switch (activation) {
    case silu: return divide_rn(x, add_rn(1.0f, expf(-x)));
    case gelu_tanh: {
      const f32 cube = multiply_rn(multiply_rn(x, x), x);
      const f32 inner = multiply_rn(0.7978846f, fused_multiply_add(0.044715f, cube, x));
      return multiply_rn(multiply_rn(0.5f, x), add_rn(1.0f, tanhf(inner)));
    }
    case gelu: return multiply_rn(multiply_rn(0.5f, x), add_rn(1.0f, erff(multiply_rn(x, 0.70710678f))));
    default: return fmaxf(x, 0.0f);
  }
}
