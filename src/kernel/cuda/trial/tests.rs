//! What trials tell of memory. `tests/cuda_kernels.rs` runs them on the twin.

use super::*;

fn sum(stage: Stage, target_form: Form) -> Trial {
    let mut fold =
        FoldTrial::new(&mut Random::new(1), (Dtype::F32, ReduceOp::Sum), 2, 3, Forms::Native);
    for (source, first) in fold.sources.iter_mut().zip([f32::INFINITY, f32::NEG_INFINITY]) {
        source.bytes = [first, 1.0, 2.0].map(f32::to_le_bytes).concat();
    }
    (fold.targets, fold.in_place, fold.stage) = (vec![8, 4], None, stage);
    fold.target_form = target_form;
    fold.trial()
}

/// Where a buffer begins.
fn place(trial: &Trial, name: &str) -> usize {
    trial.buffers.iter().find(|buffer| buffer.name == name).expect("a buffer").at
}

#[test]
fn memory_as_the_oracle_has_it_has_no_fault() {
    for forms in [Forms::Any, Forms::Native, Forms::Mixed] {
        let mut random = Random::new(7);
        let kind = (Dtype::Bf16, ReduceOp::PreMulSum);
        let trial = FoldTrial::new(&mut random, kind, 5, 40, forms).trial();
        assert_eq!(trial.fault(&trial.after), None);
        assert!(trial.fault(&trial.before).is_some(), "nothing was stored");
    }
}

#[test]
fn a_wrong_element_is_named_with_its_bits() {
    let trial = sum(Stage::Plain, Form::Native);
    let mut seen = trial.after.clone();
    let at = place(&trial, "target 1") + 4;
    seen[at..at + 4].copy_from_slice(&3f32.to_le_bytes());
    let fault = trial.fault(&seen).expect("a fault");
    assert_eq!(
        fault.to_string(),
        "element 1 of target 1: got 0x40400000, expected 0x40000000; 1 wrong"
    );
    seen[at + 4] ^= 1;
    assert_eq!(trial.fault(&seen).map(|fault| fault.wrong), Some(2));
}

#[test]
fn bytes_outside_of_targets_may_not_be_touched() {
    let trial = sum(Stage::Plain, Form::Native);
    let touched = |at: usize| {
        let mut seen = trial.after.clone();
        seen[at] ^= 0x11;
        trial.fault(&seen).expect("a fault")
    };
    let past = touched(place(&trial, "target 0") + 12);
    assert!(past.to_string().contains("byte 0 past the end of target 0"), "{past}");
    assert_eq!((past.wrong, past.outside), (0, 1));
    let before = touched(place(&trial, "source 0") - 1);
    assert!(before.to_string().contains("the memory"), "{before}");
    let last = touched(trial.after.len() - 1);
    assert!(last.to_string().contains("past the end of target 1"), "{last}");
    let source = touched(place(&trial, "source 1") + 1);
    assert!(source.to_string().contains("element 0 of source 1"), "{source}");
}

#[test]
fn payloads_are_free_where_the_rules_say_so() {
    for (stage, free) in [(Stage::Plain, true), (Stage::Finish { ranks: 2 }, false)] {
        let trial = sum(stage, Form::Native);
        let mut seen = trial.after.clone();
        let at = place(&trial, "target 0");
        // CUDA's own NaN, for infinity less infinity.
        seen[at..at + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        assert_eq!(trial.fault(&seen).is_none(), free, "{stage:?}");
        seen[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
        assert!(trial.fault(&seen).is_some(), "an infinity is no NaN");
    }
}

#[test]
fn the_same_seed_gives_the_same_trial_and_ends_of_ranges_are_among_its_numbers() {
    let made = |seed| {
        let mut random = Random::new(seed);
        let mut bytes = vec![0; 8 << 10];
        fill(&mut random, Dtype::I32, &mut bytes);
        bytes
    };
    assert_eq!(made(3), made(3));
    assert_ne!(made(3), made(4));
    let numbers = made(3);
    let has = |wanted: i32| numbers.chunks_exact(4).any(|four| four == wanted.to_le_bytes());
    assert!([i32::MIN, i32::MAX, -1, 0, 1, 2].into_iter().all(has));
}
