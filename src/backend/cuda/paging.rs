//! Where keys and values are: the twin of `kernels/paging.cuh`.

use super::products::MatrixArgument;
use crate::backend::phases::Paging;
use bytemuck::NoUninit;

/// `Paging` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct PagingArgument {
    pages: MatrixArgument,
    table: u64,
    page_row: u64,
    page_size: u32,
    num_kv_heads: u32,
    layer: u32,
    head_dim: u32,
}

impl From<&Paging> for PagingArgument {
    fn from(paging: &Paging) -> Self {
        Self {
            pages: (&paging.pool.pages).into(),
            table: paging.table.address(),
            page_row: paging.page_row.address(),
            page_size: paging.pool.page_size as u32,
            num_kv_heads: paging.pool.num_kv_heads as u32,
            layer: paging.layer as u32,
            head_dim: paging.pool.head_dim as u32,
        }
    }
}
