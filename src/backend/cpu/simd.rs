//! Sixteen `f32` lanes as each instruction set has them. Every operation is exact IEEE arithmetic
//! on each lane, and sums over lanes have one fixed tree; so an algorithm written on [`Lanes`] gives
//! the same bits on every instruction set.

use std::ffi::CStr;

/// An instruction set that the phases can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust; what other processors, and tests, use.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F beside them.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// All that this processor has, the best one last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                all.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f") {
                    all.push(Self::Avx512);
                }
            }
        }
        all
    }

    /// The best one that this processor has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// Its name.
    pub const fn name(self) -> &'static CStr {
        match self {
            Self::Portable => c"portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => c"avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => c"avx512",
        }
    }
}

/// The number of lanes.
pub const LANES: usize = 16;

/// Sixteen `f32` values.
///
/// # Safety
///
/// Every function of an implementation for an instruction set may only run where the processor has
/// it; pointers must be valid for sixteen elements, and need no alignment.
pub unsafe trait Lanes: Copy {
    /// All lanes equal.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen `f32`.
    unsafe fn load(from: *const f32) -> Self;
    /// Asks for the cache line at any address, valid or not, for the second-level cache.
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        let _ = address;
    }
    /// Sixteen `f16`, converted exactly.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Sixteen `bf16`, converted exactly.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Writes the lanes.
    unsafe fn store(self, to: *mut f32);
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`.
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other`.
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// Where `self > other` self, elsewhere (NaN too) other.
    unsafe fn max(self, other: Self) -> Self;
    /// Where `self < other` self, elsewhere (NaN too) other.
    unsafe fn min(self, other: Self) -> Self;
    /// The bits of `self` plus the bits of `exponent` shifted to the exponent field, without carry
    /// checks: multiplies by a power of two.
    unsafe fn add_exponent(self, exponent: Self) -> Self;
    /// The sum of the lanes: j with j + 8, then j with j + 4, j + 2, j + 1.
    unsafe fn sum(self) -> f32;
    /// The sums of the lanes' bits as integers, without carry checks.
    unsafe fn add_bits(self, other: Self) -> Self;
    /// Where `key >= floor` (no NaN) self, elsewhere 0.
    unsafe fn where_from(self, key: Self, floor: Self) -> Self;
    /// Writes the lanes that are at least `low` and at most `high` (no NaN), in their order, one
    /// after the other, and says how many they are. What follows them in the sixteen elements at
    /// `to` may change.
    #[inline(always)]
    unsafe fn store_between(self, low: f32, high: f32, to: *mut f32) -> usize {
        let mut lanes = [0.0; LANES];
        let mut count = 0;
        // SAFETY: sixteen elements; `count` is at most the lane.
        unsafe {
            self.store(lanes.as_mut_ptr());
            for lane in lanes {
                to.add(count).write(lane);
                count += usize::from(lane >= low && lane <= high);
            }
        }
        count
    }
}

/// Lanes as an array.
#[derive(Clone, Copy)]
pub struct PortableLanes([f32; LANES]);

impl PortableLanes {
    #[inline(always)]
    fn zip(self, other: Self, mut operation: impl FnMut(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| operation(self.0[lane], other.0[lane])))
    }
}

// SAFETY: plain arithmetic; loads and stores touch sixteen elements.
unsafe impl Lanes for PortableLanes {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: sixteen elements, by the trait's contract.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| half::f16::from_bits(bits).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn add_exponent(self, exponent: Self) -> Self {
        self.zip(exponent, |a, b| f32::from_bits(a.to_bits().wrapping_add(b.to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn add_bits(self, other: Self) -> Self {
        self.zip(other, |a, b| f32::from_bits(a.to_bits().wrapping_add(b.to_bits())))
    }
    #[inline(always)]
    unsafe fn where_from(self, key: Self, floor: Self) -> Self {
        let kept = |lane: usize| key.0[lane] >= floor.0[lane];
        Self(std::array::from_fn(|lane| if kept(lane) { self.0[lane] } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2Lanes, Avx512Lanes};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// Lanes 0..8 and 8..16.
    #[derive(Clone, Copy)]
    pub struct Avx2Lanes(__m256, __m256);

    /// One register.
    #[derive(Clone, Copy)]
    pub struct Avx512Lanes(__m512);

    /// The last three levels of the tree of [`Lanes::sum`].
    #[inline(always)]
    unsafe fn sum8(lanes: __m256) -> f32 {
        // SAFETY: the callers' processor has AVX.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    macro_rules! both {
        ($intrinsic:ident, $($operand:expr),*) => {
            // SAFETY: the processor has AVX2 and FMA, by the trait's contract.
            unsafe { Avx2Lanes($intrinsic($($operand.0),*), $intrinsic($($operand.1),*)) }
        };
    }

    // SAFETY: loads and stores touch sixteen elements; the instructions are those of AVX2, FMA and
    // F16C.
    unsafe impl Lanes for Avx2Lanes {
        #[inline(always)]
        unsafe fn prefetch(address: *const u8) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the processor has AVX2, here and below.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: sixteen elements, by the trait's contract, here and below.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe {
                Self(
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
                )
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe {
                let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
                Self(
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
                )
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            both!(_mm256_add_ps, self, other)
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            both!(_mm256_sub_ps, self, other)
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            both!(_mm256_mul_ps, self, other)
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            both!(_mm256_div_ps, self, other)
        }
        #[inline(always)]
        unsafe fn fma(self, factor: Self, addend: Self) -> Self {
            both!(_mm256_fmadd_ps, self, factor, addend)
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            both!(_mm256_max_ps, self, other)
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            both!(_mm256_min_ps, self, other)
        }
        #[inline(always)]
        unsafe fn add_exponent(self, exponent: Self) -> Self {
            // SAFETY: the processor has AVX2.
            unsafe {
                let shift = |bits| _mm256_slli_epi32::<23>(_mm256_castps_si256(bits));
                let add = |a, b| _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), b));
                Self(add(self.0, shift(exponent.0)), add(self.1, shift(exponent.1)))
            }
        }
        #[inline(always)]
        unsafe fn add_bits(self, other: Self) -> Self {
            // SAFETY: the processor has AVX2.
            unsafe {
                let add = |a, b| {
                    let sum = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b));
                    _mm256_castsi256_ps(sum)
                };
                Self(add(self.0, other.0), add(self.1, other.1))
            }
        }
        #[inline(always)]
        unsafe fn where_from(self, key: Self, floor: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let low = _mm256_cmp_ps::<_CMP_GE_OQ>(key.0, floor.0);
                let high = _mm256_cmp_ps::<_CMP_GE_OQ>(key.1, floor.1);
                Self(_mm256_and_ps(low, self.0), _mm256_and_ps(high, self.1))
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: as above.
            unsafe { sum8(_mm256_add_ps(self.0, self.1)) }
        }
    }

    // SAFETY: loads and stores touch sixteen elements; the instructions are those of AVX-512F.
    unsafe impl Lanes for Avx512Lanes {
        #[inline(always)]
        unsafe fn prefetch(address: *const u8) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the processor has AVX-512F, here and below.
            unsafe { Self(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: sixteen elements, by the trait's contract, here and below.
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: as above.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_div_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn fma(self, factor: Self, addend: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm512_min_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn add_exponent(self, exponent: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(exponent.0));
                Self(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), shifted)))
            }
        }
        #[inline(always)]
        unsafe fn add_bits(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let (ours, theirs) = (_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
                Self(_mm512_castsi512_ps(_mm512_add_epi32(ours, theirs)))
            }
        }
        #[inline(always)]
        unsafe fn where_from(self, key: Self, floor: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(key.0, floor.0);
                Self(_mm512_maskz_mov_ps(mask, self.0))
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: as above.
            unsafe {
                let low = _mm512_castps512_ps256(self.0);
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
                sum8(_mm256_add_ps(low, high))
            }
        }
        #[inline(always)]
        unsafe fn store_between(self, low: f32, high: f32, to: *mut f32) -> usize {
            // SAFETY: as above; sixteen elements are written.
            unsafe {
                let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, _mm512_set1_ps(low));
                let mask =
                    _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(mask, self.0, _mm512_set1_ps(high));
                _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, self.0));
                mask.count_ones() as usize
            }
        }
    }
}

/// Declares a function that runs a generic one on the instruction set that it is told: the generic
/// function is inlined into a copy that is compiled for the set.
macro_rules! dispatched {
    ($(#[$meta:meta])* $visibility:vis unsafe fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $generic:ident) => {
        $(#[$meta])*
        $visibility unsafe fn $name(isa: $crate::backend::cpu::simd::Isa, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($argument: $type),*) $(-> $result)? {
                // SAFETY: as the generic function's contract; the processor has AVX2.
                unsafe { $generic::<$crate::backend::cpu::simd::Avx2Lanes>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma,f16c")]
            unsafe fn avx512($($argument: $type),*) $(-> $result)? {
                // SAFETY: as the generic function's contract; the processor has AVX-512F.
                unsafe { $generic::<$crate::backend::cpu::simd::Avx512Lanes>($($argument),*) }
            }
            // SAFETY: as the generic function's contract; Isa values of an instruction set are
            // only made where the processor has it.
            unsafe {
                match isa {
                    $crate::backend::cpu::simd::Isa::Portable => {
                        $generic::<$crate::backend::cpu::simd::PortableLanes>($($argument),*)
                    }
                    #[cfg(target_arch = "x86_64")]
                    $crate::backend::cpu::simd::Isa::Avx2 => avx2($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::backend::cpu::simd::Isa::Avx512 => avx512($($argument),*),
                }
            }
        }
    };
}
pub(crate) use dispatched;
