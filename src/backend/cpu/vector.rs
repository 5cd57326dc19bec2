//! Elementwise work on single rows: conversion, norms, activations, rotary embedding.

use super::matmul::{Bf16, Element, F16, F32};
use super::memory::element;
use super::simd::{Isa, LANES, Lanes, dispatched};
use crate::backend::phases::{Activation, Norm, Rotary};
use crate::tensor::{Dtype, Matrix};

/// `to` = the row at `address`, widened.
///
/// # Safety
///
/// `to.len()` elements of the type are readable at `address`.
pub unsafe fn widen(isa: Isa, address: u64, dtype: Dtype, to: &mut [f32]) {
    // SAFETY: as this function's contract.
    unsafe { widen_on(isa, address, dtype, to) }
}

dispatched! {
    unsafe fn widen_on(address: u64, dtype: Dtype, to: &mut [f32]) = widen_in
}

/// [`widen`] on lanes.
///
/// # Safety
///
/// As for [`widen`] and [`Lanes`].
#[inline(always)]
pub unsafe fn widen_in<L: Lanes>(address: u64, dtype: Dtype, to: &mut [f32]) {
    // SAFETY: the contract of `widen`.
    unsafe {
        match dtype {
            Dtype::F32 => widen_of::<L, F32>(address as *const u8, dtype, to),
            Dtype::F16 => widen_of::<L, F16>(address as *const u8, dtype, to),
            Dtype::Bf16 => widen_of::<L, Bf16>(address as *const u8, dtype, to),
        }
    }
}

#[inline(always)]
unsafe fn widen_of<L: Lanes, E: Element>(from: *const u8, dtype: Dtype, to: &mut [f32]) {
    let full = to.len() / LANES * LANES;
    for k in (0..full).step_by(LANES) {
        // SAFETY: sixteen elements from k on lie inside of both.
        unsafe { E::load::<L>(from.add(k * E::SIZE)).store(to.as_mut_ptr().add(k)) };
    }
    for (k, to) in to.iter_mut().enumerate().skip(full) {
        // SAFETY: element k lies inside.
        *to = unsafe { element(from as u64 + (k * E::SIZE) as u64, dtype) };
    }
}

/// `row` = its RMS norm (Zhang and Sennrich, 2019): divided by the root of its mean square plus
/// epsilon, times the gain.
///
/// # Safety
///
/// The gain, if there is one, has as many columns as the row.
pub unsafe fn rms_norm(isa: Isa, row: &mut [f32], norm: &Norm) {
    // SAFETY: as this function's contract.
    unsafe { rms_norm_on(isa, row, norm.weight, norm.epsilon) }
}

dispatched! {
    unsafe fn rms_norm_on(row: &mut [f32], weight: Option<Matrix>, epsilon: f32) = rms_norm_in
}

#[inline(always)]
unsafe fn rms_norm_in<L: Lanes>(row: &mut [f32], weight: Option<Matrix>, epsilon: f32) {
    // SAFETY: the processor has the lanes' instructions, by `dispatched`.
    let square = unsafe { sum_of_squares::<L>(row) };
    let scale = 1.0 / (square / row.len() as f32 + epsilon).sqrt();
    let Some(weight) = weight else {
        row.iter_mut().for_each(|value| *value *= scale);
        return;
    };
    // SAFETY: the contract of `rms_norm`.
    unsafe {
        match weight.dtype {
            Dtype::F32 => gain_of::<L, F32>(row, &weight, scale),
            Dtype::F16 => gain_of::<L, F16>(row, &weight, scale),
            Dtype::Bf16 => gain_of::<L, Bf16>(row, &weight, scale),
        }
    }
}

#[inline(always)]
unsafe fn sum_of_squares<L: Lanes>(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    // SAFETY: whole chunks, and a copy of the rest filled up with zeros.
    unsafe {
        let mut sum = L::splat(0.0);
        for chunk in chunks {
            let x = L::load(chunk.as_ptr());
            sum = x.fma(x, sum);
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let x = L::load(last.as_ptr());
        x.fma(x, sum).sum()
    }
}

#[inline(always)]
unsafe fn gain_of<L: Lanes, E: Element>(row: &mut [f32], weight: &Matrix, scale: f32) {
    let full = row.len() / LANES * LANES;
    let weights = weight.address as *const u8;
    // SAFETY: the weight has as many elements as the row.
    unsafe {
        let scales = L::splat(scale);
        for k in (0..full).step_by(LANES) {
            let place = row.as_mut_ptr().add(k);
            let w = E::load::<L>(weights.add(k * E::SIZE));
            L::load(place).mul(scales).mul(w).store(place);
        }
        for (k, value) in row.iter_mut().enumerate().skip(full) {
            *value = *value * scale * element(weights as u64 + (k * E::SIZE) as u64, weight.dtype);
        }
    }
}

/// Applies an activation to each element.
pub fn activate(isa: Isa, row: &mut [f32], activation: Activation) {
    match activation {
        // SAFETY: slices are valid memory.
        Activation::Silu => unsafe { silu_on(isa, row) },
        Activation::GeluTanh => row.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
        Activation::Gelu => row.iter_mut().for_each(|x| *x = gelu(*x)),
        Activation::Relu => row.iter_mut().for_each(|x| *x = x.max(0.0)),
    }
}

dispatched! {
    unsafe fn silu_on(row: &mut [f32]) = silu_in
}

#[inline(always)]
unsafe fn silu_in<L: Lanes>(row: &mut [f32]) {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    // SAFETY: whole chunks, and a copy of the rest.
    unsafe {
        for chunk in chunks {
            silu::<L>(L::load(chunk.as_ptr())).store(chunk.as_mut_ptr());
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        silu::<L>(L::load(last.as_ptr())).store(last.as_mut_ptr());
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[inline(always)]
unsafe fn silu<L: Lanes>(x: L) -> L {
    // SAFETY: the callers' processor has the instructions.
    unsafe { x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(x)))) }
}

fn gelu_tanh(x: f32) -> f32 {
    const ROOT_TWO_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (ROOT_TWO_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + error_function(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Abramowitz and Stegun 7.1.26, in double precision; its error is below 1.5e-7.
fn error_function(x: f32) -> f32 {
    let magnitude = f64::from(x.abs());
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let coefficients =
        [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let polynomial = coefficients.iter().fold(0.0, |sum, c| sum * t + c) * t;
    (1.0 - polynomial * (-magnitude * magnitude).exp()).copysign(f64::from(x)) as f32
}

/// `e` to each lane's power, to about one unit in the last place; arguments are limited to the
/// range whose results are normal numbers.
///
/// # Safety
///
/// The processor has the lanes' instructions.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // The Taylor coefficients of e^r to r^6: |r| <= ln(2) / 2, so the rest is below 2^-25.
    const COEFFICIENTS: [f32; 5] = [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    // SAFETY: as this function's contract.
    unsafe {
        let x = x.min(L::splat(88.0)).max(L::splat(-87.0));
        let shifted = x.fma(L::splat(std::f32::consts::LOG2_E), L::splat(ROUND));
        let n = shifted.sub(L::splat(ROUND));
        let r = n.fma(L::splat(-LN2_HIGH), x);
        let r = n.fma(L::splat(-LN2_LOW), r);
        let mut p = L::splat(1.0 / 720.0);
        for coefficient in COEFFICIENTS {
            p = p.fma(r, L::splat(coefficient));
        }
        p.fma(r, L::splat(1.0)).add_exponent(shifted)
    }
}

/// Cosines and then sines of a position's turns, multiplied by the rotary embedding's scale.
///
/// # Safety
///
/// The tables of `rotary` are valid; `turns` has twice their length.
pub unsafe fn turn(rotary: &Rotary, position: i32, turns: &mut [f32]) {
    let long = usize::try_from(position).is_ok_and(|position| position >= rotary.long_from);
    let table = if long { rotary.long_inverse_frequency } else { rotary.inverse_frequency };
    // SAFETY: as this function's contract.
    let table = unsafe { super::memory::elements(table) };
    let (cosines, sines) = turns.split_at_mut(table.len());
    for ((cosine, sine), inverse_frequency) in cosines.iter_mut().zip(sines).zip(table) {
        let (s, c) = (position as f32 * inverse_frequency).sin_cos();
        (*cosine, *sine) = (c * rotary.scale, s * rotary.scale);
    }
}

/// Turns a head by its rotary embedding (Su et al., 2021), pairing element i with element
/// i + half; elements beyond the turned ones stay.
pub fn rotate(head: &mut [f32], turns: &[f32]) {
    let half = turns.len() / 2;
    let (cosines, sines) = turns.split_at(half);
    let (first, second) = head.split_at_mut(half);
    for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Span;

    dispatched! {
        unsafe fn exp_on(row: &mut [f32]) = exp_in
    }

    #[inline(always)]
    unsafe fn exp_in<L: Lanes>(row: &mut [f32]) {
        for chunk in row.as_chunks_mut::<LANES>().0 {
            // SAFETY: sixteen elements.
            unsafe { exp(L::load(chunk.as_ptr())).store(chunk.as_mut_ptr()) };
        }
    }

    #[test]
    fn the_exponential_is_exact_to_two_units_on_every_instruction_set() {
        let arguments: Vec<f32> = (-87 * 64..88 * 64).map(|i| i as f32 / 64.0 + 0.003).collect();
        let arguments = &arguments[..arguments.len() / LANES * LANES];
        let mut reference = arguments.to_vec();
        // SAFETY: slices are valid memory.
        unsafe { exp_on(Isa::Portable, &mut reference) };
        for (x, found) in arguments.iter().zip(&reference) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(*found) / exact - 1.0).abs() < 2.4e-7, "{x}: {found} {exact}");
        }
        for isa in Isa::available() {
            let mut row = arguments.to_vec();
            // SAFETY: as above.
            unsafe { exp_on(isa, &mut row) };
            assert_eq!(row, reference, "{isa:?}");
        }
    }

    #[test]
    fn activations_are_their_definitions_over_the_whole_range() {
        let row: Vec<f32> = (-400..=400).map(|i| i as f32 / 8.0).collect();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let tanh = |x: f64| {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        };
        let check = |activation, exact: &dyn Fn(f64) -> f64| {
            for isa in Isa::available() {
                let mut found = row.clone();
                activate(isa, &mut found, activation);
                for (x, y) in row.iter().zip(found) {
                    let exact = exact(f64::from(*x));
                    assert!((f64::from(y) - exact).abs() < 1e-5 * exact.abs().max(0.1), "{x} {y}");
                }
            }
        };
        check(Activation::Silu, &|x| x * sigmoid(x));
        check(Activation::GeluTanh, &tanh);
        check(Activation::Relu, &|x| x.max(0.0));
        // The values of the Gaussian's integral at these points, from tables.
        for (x, y) in [(1.0, 0.841_344_7), (-1.0, -0.158_655_3), (2.0, 1.954_499_7), (0.0, 0.0)] {
            assert!((gelu(x) - y).abs() < 1e-6);
        }
    }

    #[test]
    fn a_norm_has_mean_square_one_before_its_gain_on_every_instruction_set() {
        let row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let gain: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 37.0).collect();
        let weight = Matrix {
            address: gain.as_ptr() as u64,
            dtype: Dtype::F32,
            rows: 1,
            columns: 37,
            row_stride: 37,
        };
        let square: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 37.0;
        let norm = Norm { weight: Some(weight), epsilon: 0.25 };
        let mut results = Vec::new();
        for isa in Isa::available() {
            let mut found = row.clone();
            // SAFETY: the gain is a vector of this function.
            unsafe { rms_norm(isa, &mut found, &norm) };
            for ((x, g), y) in row.iter().zip(&gain).zip(&found) {
                let exact = f64::from(*x) / (square + 0.25).sqrt() * f64::from(*g);
                assert!((exact - f64::from(*y)).abs() < 1e-6 * exact.abs().max(1.0));
            }
            results.push(found);
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn turns_keep_lengths_and_leave_the_rest_of_a_head() {
        let frequencies = [1.0_f32, 0.1, 0.01];
        let span = Span::new(frequencies.as_ptr() as u64, 3);
        let long = [0.5_f32, 0.5, 0.5];
        let rotary = Rotary {
            inverse_frequency: span,
            long_inverse_frequency: Span::new(long.as_ptr() as u64, 3),
            long_from: 10,
            scale: 1.0,
        };
        let mut turns = [0.0; 6];
        // SAFETY: the tables are arrays of this function.
        unsafe { turn(&rotary, 7, &mut turns) };
        assert!((turns[1] - 0.7_f32.cos()).abs() < 1e-6 && (turns[4] - 0.7_f32.sin()).abs() < 1e-6);
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        rotate(&mut head, &turns);
        assert_eq!(head[6..], [7.0, 8.0]);
        for i in 0..3 {
            let before = f64::from((i + 1) as f32).hypot(f64::from((i + 4) as f32));
            let after = f64::from(head[i]).hypot(f64::from(head[i + 3]));
            assert!((before - after).abs() < 1e-5);
        }
        // SAFETY: as above.
        unsafe { turn(&rotary, 10, &mut turns) };
        assert!((turns[0] - 5.0_f32.cos()).abs() < 1e-6);
    }
}
