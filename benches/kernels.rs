//! Sums of all float types, beside a plain C loop over `f32` with the same number of bytes.
//!
//! `cargo bench --bench kernels` measures every instruction set of this CPU on 2, 3, 4 and 8 inputs,
//! with all operands together in L2, and in memory. Bytes are those read and written. It ends with
//! a table of our rates over the loop's; `-- l2/f8` measures less. The loop is in `plain.c`, made
//! by `gcc -O3 -march=native` (`CC` names another compiler). Pin it to a core: `taskset -c 1`.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use unisono::kernel::{Fold, Form, Isa, Source, Stage, select_for};
use unisono::types::{Dtype, ReduceOp};

const INPUTS: &[usize] = &[2, 3, 4, 8];

const TYPES: &[Dtype] =
    &[Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2];

/// Where the operands lie, and how results are stored.
#[derive(Clone, Copy)]
struct Place {
    name: &'static str,
    /// Of all operands together.
    bytes: usize,
    /// [`Fold::streaming`].
    streaming: usize,
    measure_ms: u64,
}

const PLACES: &[Place] = &[
    Place { name: "l2", bytes: 256 << 10, streaming: 0, measure_ms: 100 },
    Place { name: "memory", bytes: 256 << 20, streaming: 0, measure_ms: 200 },
    Place { name: "streamed", bytes: 256 << 20, streaming: 1, measure_ms: 200 },
];

/// Every byte: an ordinary number in each type.
const FILLER: u8 = 0x3c;

type Loop = unsafe extern "C" fn(*const *const f32, *mut f32, usize);

/// `plain.c`, compiled now and loaded.
struct Plain(*mut libc::c_void);

impl Plain {
    fn load() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plain.c");
        let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plain.so");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
        let done = Command::new(&compiler)
            .args(["-O3", "-march=native", "-fPIC", "-shared", "-o"])
            .args([&object, &source])
            .status();
        assert!(done.is_ok_and(|status| status.success()), "{compiler} did not make {object:?}");
        let path = CString::new(object.to_str().expect("UTF-8")).expect("no zero");
        // SAFETY: the object was made above and runs nothing when loaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{object:?} cannot be loaded");
        Self(handle)
    }

    fn sum(&self, inputs: usize) -> Loop {
        let name = CString::new(format!("sum{inputs}")).expect("no zero");
        // SAFETY: the handle is open, and plain.c declares every such function as a `Loop`.
        unsafe {
            let found = libc::dlsym(self.0, name.as_ptr());
            assert!(!found.is_null(), "plain.c has no {name:?}");
            std::mem::transmute::<*mut libc::c_void, Loop>(found)
        }
    }
}

/// One buffer cut into equal parts: inputs, then the output. The same for whoever is measured.
struct Operands {
    parts: Vec<*mut u8>,
    bytes: usize,
}

impl Operands {
    /// Parts are whole lines.
    fn cut(buffer: &mut [u8], place: Place, inputs: usize) -> Self {
        let start = buffer.as_ptr().align_offset(4096);
        let bytes = place.bytes / (inputs + 1) / 64 * 64;
        let parts = buffer[start..start + place.bytes].chunks_exact_mut(bytes);
        Self { parts: parts.take(inputs + 1).map(<[u8]>::as_mut_ptr).collect(), bytes }
    }

    fn all_bytes(&self) -> u64 {
        u64::try_from(self.bytes * self.parts.len()).expect("fits")
    }
}

/// What was measured: place, inputs and name to the seconds of each sample.
#[derive(Default)]
struct Results(BTreeMap<(&'static str, usize, String), (u64, Vec<f64>)>);

impl Results {
    /// Median bytes per second.
    fn rate(&self, place: &'static str, inputs: usize, name: &str) -> Option<f64> {
        let (bytes, samples) = self.0.get(&(place, inputs, name.to_owned()))?;
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        Some(*bytes as f64 / sorted[sorted.len() / 2])
    }

    fn measure(
        &mut self,
        criterion: &mut Criterion,
        (place, inputs, name): (Place, usize, String),
        operands: &Operands,
        run: impl Fn(),
    ) {
        let mut samples = Vec::new();
        let mut group = criterion.benchmark_group(place.name);
        group
            .sample_size(10)
            .sampling_mode(SamplingMode::Flat)
            .warm_up_time(Duration::from_millis(place.measure_ms / 4))
            .measurement_time(Duration::from_millis(place.measure_ms))
            .throughput(Throughput::Bytes(operands.all_bytes()));
        group.bench_function(BenchmarkId::new(&name, inputs), |bencher| {
            bencher.iter_custom(|times| {
                let start = Instant::now();
                for _ in 0..times {
                    run();
                }
                let elapsed = start.elapsed();
                #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
                samples.push(elapsed.as_secs_f64() / times as f64);
                elapsed
            });
        });
        group.finish();
        if !samples.is_empty() {
            self.0.insert((place.name, inputs, name), (operands.all_bytes(), samples));
        }
    }
}

fn measure_loop(
    criterion: &mut Criterion,
    results: &mut Results,
    plain: &Plain,
    (place, inputs): (Place, usize),
    operands: &Operands,
) {
    let sum = plain.sum(inputs);
    let sources: Vec<*const f32> = operands.parts.iter().map(|p| p.cast_const().cast()).collect();
    let target = operands.parts[inputs].cast();
    let count = operands.bytes / size_of::<f32>();
    // SAFETY: every part holds `count` floats and none overlaps another.
    let run = || unsafe { sum(black_box(sources.as_ptr()), target, count) };
    results.measure(criterion, (place, inputs, "gcc".to_owned()), operands, run);
}

fn measure_kernel(
    criterion: &mut Criterion,
    results: &mut Results,
    (place, inputs, dtype, isa): (Place, usize, Dtype, Isa),
    operands: &Operands,
) {
    let kernels = select_for(isa, dtype, ReduceOp::Sum).expect("every float has a sum");
    let source = |at: &*mut u8| Source { at: at.cast_const(), form: Form::Native };
    let sources: Vec<Source> = operands.parts[..inputs].iter().map(source).collect();
    let fold = Fold {
        sources: &sources,
        targets: &operands.parts[inputs..],
        target_form: Form::Native,
        count: operands.bytes / dtype.bytes(),
        stage: Stage::Plain,
        streaming: place.streaming,
    };
    // SAFETY: every part holds `count` elements and none overlaps another.
    let run = || unsafe { (kernels.fold)(black_box(&fold)) };
    results.measure(criterion, (place, inputs, format!("{dtype}/{isa}")), operands, run);
}

fn print_table(results: &Results) {
    let isas: Vec<Isa> = Isa::available().filter(|isa| *isa != Isa::Scalar).collect();
    for place in PLACES {
        println!("\n{}: {} KiB in all; ours over gcc's f32", place.name, place.bytes >> 10);
        print!("{:10}{:>7}{:>10}", "type", "inputs", "gcc GB/s");
        isas.iter().for_each(|isa| print!("{:>10}", isa.name()));
        println!();
        for &dtype in TYPES {
            for &inputs in INPUTS {
                let Some(base) = results.rate(place.name, inputs, "gcc") else { continue };
                print!("{:10}{inputs:>7}{:>10.1}", dtype.name(), base / 1e9);
                for isa in &isas {
                    match results.rate(place.name, inputs, &format!("{dtype}/{isa}")) {
                        Some(rate) => print!("{:>10.2}", rate / base),
                        None => print!("{:>10}", "-"),
                    }
                }
                println!();
            }
        }
    }
}

fn main() {
    let plain = Plain::load();
    let mut criterion = Criterion::default().configure_from_args();
    let mut results = Results::default();
    let largest = PLACES.iter().map(|place| place.bytes).max().expect("places");
    let mut buffer = vec![FILLER; largest + 4096];
    for &place in PLACES {
        for &inputs in INPUTS {
            let operands = Operands::cut(&mut buffer, place, inputs);
            measure_loop(&mut criterion, &mut results, &plain, (place, inputs), &operands);
            for &dtype in TYPES {
                for isa in Isa::available().filter(|isa| *isa != Isa::Scalar) {
                    let which = (place, inputs, dtype, isa);
                    measure_kernel(&mut criterion, &mut results, which, &operands);
                }
            }
        }
    }
    criterion.final_summary();
    print_table(&results);
}
