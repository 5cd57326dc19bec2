//! Mixtures of experts and the gate of an attention, on CUDA against the CPU.

mod device;
#[allow(dead_code)] // Each test program uses its own part.
mod phases;
#[allow(dead_code)] // Each test program uses its own part.
#[path = "host/random.rs"]
mod random;

use device::Device;
use device::backend::cuda_test;
use phases::*;
use random::Random;
use speculators::backend::experts::{ExpertScratch, ExpertWeights, MixExperts};
use speculators::backend::phases::{Activation, GateRows};
use speculators::tensor::Dtype;

/// A mixture and the rows that go through it.
#[derive(Clone, Debug)]
struct Mixture {
    rows: RowValues,
    chosen: usize,
    renormalizes: bool,
    activation: Activation,
    hidden: Values,
    gain: Option<Values>,
    router: Values,
    gate_up: Values,
    down: Values,
    /// Gate, up, down and router of the shared expert.
    shared: [Values; 4],
}

impl Mixture {
    fn random(random: &mut Random, rows: RowValues) -> Self {
        use Activation::{Gelu, GeluTanh, Relu, Silu};
        let hidden = WIDTHS[random.below(WIDTHS.len())];
        let (experts, inner) = (1 + random.below(12), 1 + random.below(70));
        let shared = 1 + random.below(50);
        let dtype = DTYPES[random.below(3)];
        let mut map = |rows: usize, columns: usize| {
            let scale = 1.0 / (columns as f32).sqrt();
            Values::random(random, (rows, columns), dtype, scale)
        };
        let (router, gate_up) = (map(experts, hidden), map(2 * experts * inner, hidden));
        let down = map(experts * hidden, inner);
        let shared =
            [map(shared, hidden), map(shared, hidden), map(hidden, shared), map(1, hidden)];
        let gain = Values::gain(random, hidden);
        Self {
            chosen: 1 + random.below(experts.min(5)),
            renormalizes: random.chance(0.5),
            activation: [Silu, Gelu, GeluTanh, Relu][random.below(4)],
            hidden: Values::random(random, (rows.most, hidden), Dtype::F32, 2.0),
            gain: Some(gain),
            rows,
            router,
            gate_up,
            down,
            shared,
        }
    }

    /// The residual stream of all rows, and the experts of those that there are.
    fn run(&self, device: Device) -> (Vec<f32>, Vec<i32>) {
        let mut place = Place::on(device);
        let place = &mut place;
        let [shared_gate, shared_up, shared_down, shared_router] =
            [0, 1, 2, 3].map(|map| place.matrix(&self.shared[map]));
        let (most, width) = (self.rows.most, self.hidden.columns);
        let (experts, inner) = (self.router.rows, self.down.columns);
        let sorted = most * self.chosen;
        let phase = MixExperts {
            rows: self.rows.lend(place),
            hidden: place.matrix(&self.hidden),
            norm: place.norm(&self.gain),
            weights: ExpertWeights {
                router: place.matrix(&self.router),
                chosen: self.chosen,
                renormalizes: self.renormalizes,
                gate_up: place.matrix(&self.gate_up),
                down: place.matrix(&self.down),
                shared_gate,
                shared_up,
                shared_down,
                shared_router,
            },
            activation: self.activation,
            input: place.output(most, width),
            shared_inner: place.output(most, self.shared[0].rows),
            scratch: ExpertScratch {
                scores: place.output(most, experts),
                experts: place.array(&vec![-9; sorted]),
                weights: place.output(most, self.chosen),
                places: place.array(&vec![-9; sorted]),
                begins: place.array(&vec![-9; experts + 2]),
                busy: place.array(&vec![-9; experts + 1]),
                sorted: place.output(sorted, width),
                inner: place.output(sorted, inner),
                shared: place.output(most, width),
                shared_score: place.output(most, 1),
            },
        };
        place.run(|backend, stream| backend.mix_experts(stream, &phase).unwrap());
        let mut chosen = read_array(phase.scratch.experts);
        chosen.truncate(self.rows.count * self.chosen);
        (read(&phase.hidden), chosen)
    }

    #[track_caller]
    fn assert_same(&self, what: &str) {
        let (found, expected) = (self.run(Device::Cuda), self.run(Device::Cpu));
        assert_eq!(found.1, expected.1, "{what}");
        assert_close(&found.0, &expected.0, self.hidden.columns, 4.0 * TOLERANCE, what);
    }
}

#[test]
fn mixtures_of_experts_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 24)) {
        let rows = random_rows(&mut random);
        let mixture = Mixture::random(&mut random, rows);
        mixture.assert_same(&format!("case {number}: {:?}", mixture.rows));
    }
}

#[test]
fn more_rows_of_an_expert_than_a_block_takes_at_a_time_are_all_served() {
    let Some(_turn) = cuda_test() else { return };
    for rows in [9, 300] {
        let mut random = Random::new(rows as u64);
        let mut mixture = Mixture::random(&mut random, RowValues::new(rows, rows, 0));
        // All rows choose the same experts.
        mixture.router.elements.fill(0.0);
        mixture.assert_same(&format!("{rows} rows"));
    }
}

#[test]
fn rows_of_no_numbers_disturb_no_others() {
    let Some(_turn) = cuda_test() else { return };
    let mut random = Random::new(3);
    let sound = Mixture::random(&mut random, RowValues::new(5, 5, 0));
    let width = sound.hidden.columns;
    let mut spoilt = sound.clone();
    spoilt.hidden.elements[width..2 * width].fill(f32::NAN);
    let (sound, spoilt) = (sound.run(Device::Cuda), spoilt.run(Device::Cuda));
    assert!(spoilt.0[width..2 * width].iter().all(|value| value.is_nan()));
    assert_same_bits(&spoilt.0[..width], &sound.0[..width], "the row before");
    assert_same_bits(&spoilt.0[2 * width..], &sound.0[2 * width..], "the rows behind");
}

#[test]
fn gates_are_applied_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(30, 15)) {
        let rows = random_rows(&mut random);
        let width = 1 + random.below(600);
        let [gates, values] = [2.0, 1.0]
            .map(|scale| Values::random(&mut random, (rows.most, width), Dtype::F32, scale));
        let [expected, found] = [Device::Cpu, Device::Cuda].map(|device| {
            let mut place = Place::on(device);
            let phase = GateRows {
                rows: rows.lend(&mut place),
                gates: place.matrix(&gates),
                values: place.matrix(&values),
            };
            place.run(|backend, stream| backend.gate_rows(stream, &phase).unwrap());
            read(&phase.values)
        });
        assert_close(&found, &expected, width, TOLERANCE, &format!("case {number}: {rows:?}"));
    }
}
