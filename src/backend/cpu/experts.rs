//! Mixtures of experts, and the gate of an attention.

use super::CpuBackend;
use super::block_heads::{select_largest, sigmoid};
use super::drafting::{active, linear_product};
use super::matmul::{Product, Sink, multiply, multiply_tile, run_tiles};
use super::memory::{elements, elements_mut, row, row_mut};
use crate::backend::experts::MixExperts;
use crate::backend::phases::{GateRows, Linear};
use crate::tensor::{Matrix, Span};

/// All of these: the contract of [`crate::backend::Backend`].
impl CpuBackend {
    pub(super) unsafe fn gate_each(&self, phase: &GateRows) {
        // SAFETY: the contract of Backend.
        let rows = unsafe { active(&phase.rows) };
        self.pool.run(rows, &|index| {
            // SAFETY: the row's own memory, as the contract of Backend says.
            let (values, gates) =
                unsafe { (row_mut(&phase.values, index), row(&phase.gates, index)) };
            values.iter_mut().zip(gates).for_each(|(value, &gate)| *value *= sigmoid(gate));
        });
    }

    pub(super) unsafe fn mix_expert_rows(&self, phase: &MixExperts) {
        let (weights, scratch) = (&phase.weights, &phase.scratch);
        // SAFETY: the contract of Backend.
        unsafe {
            let rows = active(&phase.rows);
            self.norm_rows(&phase.hidden, &phase.input, rows, Some(&phase.norm));
            let (gate, up) =
                (Linear::unbiased(weights.shared_gate), Linear::unbiased(weights.shared_up));
            let gated = Sink::Gate(phase.activation, &up);
            let products = [
                Product::of(&weights.router, scratch.scores, Sink::Store),
                Product::of(&weights.shared_router, scratch.shared_score, Sink::Store),
                linear_product(&gate, phase.shared_inner, gated),
            ];
            multiply(&self.pool, self.isa, &phase.input, rows, products);
            let shared = [Product::of(&weights.shared_down, scratch.shared, Sink::Store)];
            multiply(&self.pool, self.isa, &phase.shared_inner, rows, shared);
            self.pool.run(rows, &|index| choose(phase, index));
            sort(phase, rows);
            self.pool.run(rows, &|index| {
                for &place in of_row(scratch.places, weights.chosen, index) {
                    row_mut(&scratch.sorted, place as usize)
                        .copy_from_slice(row(&phase.input, index));
                }
            });
            self.run_experts(phase, rows);
            self.pool.run(rows, &|index| add(phase, index));
        }
    }

    /// What the experts make of the rows that are sorted by them. Each reads its weights once for all of
    /// its rows.
    unsafe fn run_experts(&self, phase: &MixExperts, rows: usize) {
        let (weights, scratch) = (&phase.weights, &phase.scratch);
        // SAFETY: as for `mix_expert_rows`; `sort` has filled both.
        let (busy, begins) = unsafe { (elements(scratch.busy), elements(scratch.begins)) };
        let (count, busy) = (busy[0] as usize, &busy[1..]);
        let of_expert = |number: usize| {
            let expert = busy[number] as usize;
            let (begin, end) = (begins[expert] as usize, begins[expert + 1] as usize);
            let rows = |matrix: &Matrix| matrix.row_range(begin, end - begin);
            (expert, rows(&scratch.sorted), rows(&scratch.inner))
        };
        let sorted = rows * weights.chosen;
        run_tiles(&self.pool, (count, sorted), &weights.gate(0), &|number, tile| {
            let (expert, input, inner) = of_expert(number);
            let (gate, up) =
                (Linear::unbiased(weights.gate(expert)), Linear::unbiased(weights.up(expert)));
            let product = linear_product(&gate, inner, Sink::Gate(phase.activation, &up));
            // SAFETY: as for `mix_expert_rows`; each tile has columns of its own.
            unsafe { multiply_tile(self.isa, &input, input.rows, &product, tile) };
        });
        run_tiles(&self.pool, (count, sorted), &weights.down(0), &|number, tile| {
            let (expert, output, inner) = of_expert(number);
            let down = weights.down(expert);
            let product = Product::of(&down, output, Sink::Store);
            // SAFETY: as above.
            unsafe { multiply_tile(self.isa, &inner, inner.rows, &product, tile) };
        });
    }
}

/// The elements of a row where each has `len`.
unsafe fn of_row<'a>(span: Span<i32>, len: usize, index: usize) -> &'a [i32] {
    // SAFETY: the callers' spans are filled, and have the row.
    unsafe { elements(span.slice(index * len, len)) }
}

/// Chooses the experts of a row and what they weigh.
unsafe fn choose(phase: &MixExperts, index: usize) {
    let (scratch, chosen) = (&phase.scratch, phase.weights.chosen);
    // SAFETY: the row's own memory, as the contract of Backend says.
    unsafe {
        let scores = row(&scratch.scores, index);
        let experts = elements_mut(scratch.experts.slice(index * chosen, chosen));
        let weights = row_mut(&scratch.weights, index);
        select_largest(scores, experts, weights);
        let largest = weights[0];
        let power = |score: f32| (score - largest).exp();
        weights.iter_mut().for_each(|weight| *weight = power(*weight));
        let sum: f32 = match phase.weights.renormalizes {
            true => weights.iter().sum(),
            false => scores.iter().map(|&score| power(score)).sum(),
        };
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
}

/// Sorts the rows by expert, those of one in their order: where each begins, which have any, and the places
/// of each row.
unsafe fn sort(phase: &MixExperts, rows: usize) {
    let scratch = &phase.scratch;
    let sorted = rows * phase.weights.chosen;
    // SAFETY: the contract of Backend; the experts are chosen among those there are.
    unsafe {
        let experts = elements(scratch.experts.slice(0, sorted));
        let places = elements_mut(scratch.places.slice(0, sorted));
        let (begins, busy) = (elements_mut(scratch.begins), elements_mut(scratch.busy));
        // Expert e is counted two places further on. The sum of all counts before it then stands one
        // place further on, and moves to where the next one begins while its rows take their places.
        begins.fill(0);
        for &expert in experts {
            begins[expert as usize + 2] += 1;
        }
        let mut count = 0;
        for expert in 0..phase.weights.router.rows {
            if begins[expert + 2] > 0 {
                count += 1;
                busy[count] = expert as i32;
            }
            begins[expert + 2] += begins[expert + 1];
        }
        busy[0] = count as i32;
        for (place, &expert) in places.iter_mut().zip(experts) {
            let next = &mut begins[expert as usize + 1];
            *place = *next;
            *next += 1;
        }
    }
}

/// Adds what the experts make of a row to its residual stream.
unsafe fn add(phase: &MixExperts, index: usize) {
    let scratch = &phase.scratch;
    // SAFETY: the row's own memory, as the contract of Backend says.
    unsafe {
        let hidden = row_mut(&phase.hidden, index);
        let mut add = |weight: f32, made: &[f32]| {
            hidden.iter_mut().zip(made).for_each(|(to, made)| *to += weight * made);
        };
        let places = of_row(scratch.places, phase.weights.chosen, index);
        for (&place, &weight) in places.iter().zip(row(&scratch.weights, index)) {
            add(weight, row(&scratch.sorted, place as usize));
        }
        add(sigmoid(row(&scratch.shared_score, index)[0]), row(&scratch.shared, index));
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Isa;
    use super::super::threads::Threads;
    use super::*;
    use crate::backend::experts::{ExpertScratch, ExpertWeights};
    use crate::backend::phases::{Activation, Norm, Rows};
    use crate::tensor::{Carver, Dtype};
    use half::bf16;

    const HIDDEN: usize = 37;
    const EXPERTS: usize = 7;
    const CHOSEN: usize = 3;
    const INNER: usize = 19;
    const SHARED: usize = 21;
    const EPSILON: f32 = 1e-6;

    /// A matrix of numbers that bf16 holds, in memory of its own.
    struct Numbers {
        values: Vec<f32>,
        narrow: Vec<bf16>,
        rows: usize,
    }

    impl Numbers {
        fn new(seed: u32, rows: usize, columns: usize) -> Self {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
            };
            let narrow: Vec<bf16> = (0..rows * columns).map(|_| next()).collect();
            let values = narrow.iter().map(|value| value.to_f32()).collect();
            Self { values, narrow, rows }
        }

        fn matrix(&self, dtype: Dtype) -> Matrix {
            let (rows, columns) = (self.rows, self.values.len() / self.rows);
            let address = match dtype {
                Dtype::F32 => self.values.as_ptr() as u64,
                _ => self.narrow.as_ptr() as u64,
            };
            Matrix { address, dtype, rows, columns, row_stride: columns }
        }

        fn row(&self, row: usize) -> &[f32] {
            let columns = self.values.len() / self.rows;
            &self.values[row * columns..][..columns]
        }

        fn times(&self, (first, rows): (usize, usize), x: &[f64]) -> Vec<f64> {
            let dot = |row| self.row(row).iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
            (first..first + rows).map(dot).collect()
        }
    }

    struct World {
        router: Numbers,
        gate_up: Numbers,
        down: Numbers,
        shared_gate: Numbers,
        shared_up: Numbers,
        shared_down: Numbers,
        shared_router: Numbers,
        gain: Numbers,
        hidden: Numbers,
        renormalizes: bool,
    }

    impl World {
        fn new(rows: usize, renormalizes: bool) -> Self {
            Self {
                router: Numbers::new(1, EXPERTS, HIDDEN),
                gate_up: Numbers::new(2, EXPERTS * 2 * INNER, HIDDEN),
                down: Numbers::new(3, EXPERTS * HIDDEN, INNER),
                shared_gate: Numbers::new(4, SHARED, HIDDEN),
                shared_up: Numbers::new(5, SHARED, HIDDEN),
                shared_down: Numbers::new(6, HIDDEN, SHARED),
                shared_router: Numbers::new(7, 1, HIDDEN),
                gain: Numbers::new(8, 1, HIDDEN),
                hidden: Numbers::new(9, rows, HIDDEN),
                renormalizes,
            }
        }

        /// What the phase makes of all rows.
        fn found(&self, isa: Isa, threads: usize, dtype: Dtype, rows: usize) -> Vec<f32> {
            let backend = CpuBackend::new(Threads::Own(threads)).unwrap().with_instructions(isa);
            let weights = ExpertWeights {
                router: self.router.matrix(dtype),
                chosen: CHOSEN,
                renormalizes: self.renormalizes,
                gate_up: self.gate_up.matrix(dtype),
                down: self.down.matrix(dtype),
                shared_gate: self.shared_gate.matrix(dtype),
                shared_up: self.shared_up.matrix(dtype),
                shared_down: self.shared_down.matrix(dtype),
                shared_router: self.shared_router.matrix(dtype),
            };
            let carve = |carver: &mut Carver| {
                // One row more than there are: they need not fill what there is room for.
                let room = rows + 1;
                let scratch = ExpertScratch::carve(carver, &weights, room);
                let input = carver.matrix(Dtype::F32, room, HIDDEN);
                (scratch, input, carver.matrix(Dtype::F32, room, SHARED), Rows::carve(carver, room))
            };
            let mut counting = Carver::counting();
            carve(&mut counting);
            let mut memory = vec![[f32::NAN; 16]; counting.used() / 64 + 1];
            let base = (memory.as_mut_ptr() as u64).next_multiple_of(64);
            let (scratch, input, shared_inner, view) = carve(&mut Carver::of_block(base));
            let mut hidden = self.hidden.values[..rows * HIDDEN].to_vec();
            hidden.resize((rows + 1) * HIDDEN, 5.0);
            let phase = MixExperts {
                rows: view,
                hidden: Matrix {
                    address: hidden.as_mut_ptr() as u64,
                    rows: rows + 1,
                    ..self.hidden.matrix(Dtype::F32)
                },
                norm: Norm { weight: Some(self.gain.matrix(Dtype::F32)), epsilon: EPSILON },
                weights,
                activation: Activation::Silu,
                input,
                shared_inner,
                scratch,
            };
            // SAFETY: all matrices and spans lie in vectors of this function and of `self`.
            unsafe {
                elements_mut(view.count)[0] = rows as i32;
                backend.mix_expert_rows(&phase);
            }
            assert!(hidden[rows * HIDDEN..].iter().all(|&value| value == 5.0));
            hidden.truncate(rows * HIDDEN);
            hidden
        }

        /// The definition, row by row in double precision.
        fn expected(&self, row: usize) -> Vec<f64> {
            let hidden: Vec<f64> = self.hidden.row(row).iter().map(|&x| f64::from(x)).collect();
            let square = hidden.iter().map(|x| x * x).sum::<f64>() / HIDDEN as f64;
            let scale = 1.0 / (square + f64::from(EPSILON)).sqrt();
            let gains = self.gain.row(0).iter();
            let x: Vec<f64> =
                hidden.iter().zip(gains).map(|(x, &gain)| x * scale * f64::from(gain)).collect();
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let gated = |gate: Vec<f64>, up: Vec<f64>| -> Vec<f64> {
                gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up).collect()
            };
            let powers: Vec<f64> =
                self.router.times((0, EXPERTS), &x).iter().map(|score| score.exp()).collect();
            let mut order: Vec<usize> = (0..EXPERTS).collect();
            order.sort_by(|&a, &b| powers[b].total_cmp(&powers[a]));
            let chosen = &order[..CHOSEN];
            let sum: f64 = match self.renormalizes {
                true => chosen.iter().map(|&expert| powers[expert]).sum(),
                false => powers.iter().sum(),
            };
            let mut result = hidden.clone();
            let mut add = |weight: f64, made: Vec<f64>| {
                result.iter_mut().zip(made).for_each(|(to, made)| *to += weight * made);
            };
            for &expert in chosen {
                let half = |at: usize| self.gate_up.times(((2 * expert + at) * INNER, INNER), &x);
                let inner = gated(half(0), half(1));
                add(powers[expert] / sum, self.down.times((expert * HIDDEN, HIDDEN), &inner));
            }
            let shared = (0, SHARED);
            let inner = gated(self.shared_gate.times(shared, &x), self.shared_up.times(shared, &x));
            let weight = sigmoid(self.shared_router.times((0, 1), &x)[0]);
            add(weight, self.shared_down.times((0, HIDDEN), &inner));
            result
        }
    }

    #[test]
    fn a_mixture_is_its_definition_for_any_rows_threads_instructions_and_types() {
        for renormalizes in [true, false] {
            let world = World::new(23, renormalizes);
            let all = world.found(Isa::Portable, 1, Dtype::F32, 23);
            for (row, found) in all.chunks(HIDDEN).enumerate() {
                for (found, exact) in found.iter().zip(world.expected(row)) {
                    let error = (f64::from(*found) - exact).abs();
                    assert!(error < 1e-4 + 1e-5 * exact.abs(), "row {row}: {found}, {exact}");
                }
            }
            for isa in Isa::available() {
                for (dtype, threads) in [(Dtype::F32, 3), (Dtype::Bf16, 2)] {
                    for rows in [0, 1, 2, 5, 23] {
                        let found = world.found(isa, threads, dtype, rows);
                        assert_eq!(found, all[..rows * HIDDEN], "{isa:?} {dtype:?} {rows}");
                    }
                }
            }
        }
    }

    #[test]
    fn scores_that_are_no_numbers_choose_experts_that_there_are() {
        let mut world = World::new(4, true);
        world.hidden.values[HIDDEN..2 * HIDDEN].fill(f32::NAN);
        let found = world.found(Isa::detect(), 2, Dtype::F32, 4);
        let sound = World::new(4, true).found(Isa::detect(), 2, Dtype::F32, 4);
        assert!(found[HIDDEN..2 * HIDDEN].iter().all(|value| value.is_nan()));
        assert_eq!(found[..HIDDEN], sound[..HIDDEN], "one row is no business of the others");
        assert_eq!(found[2 * HIDDEN..], sound[2 * HIDDEN..]);
    }
}
