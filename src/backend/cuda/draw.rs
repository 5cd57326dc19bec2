//! How proposals are drawn: the twin of `kernels/draw.cuh`.

use super::products::address_or_zero;
use crate::backend::verify::SamplingArrays;
use bytemuck::NoUninit;

/// `Sampling` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct SamplingArgument {
    temperature: u64,
    top_k: u64,
    top_p: u64,
    min_p: u64,
    seed: u64,
}

impl From<&SamplingArrays> for SamplingArgument {
    fn from(sampling: &SamplingArrays) -> Self {
        Self {
            temperature: address_or_zero(sampling.temperature),
            top_k: address_or_zero(sampling.top_k),
            top_p: address_or_zero(sampling.top_p),
            min_p: address_or_zero(sampling.min_p),
            seed: address_or_zero(sampling.seed),
        }
    }
}
