//! The Rust API: typed calls, scopes and groups, on threads and on every link.

use std::thread;
use unisono::comm::Communicator;
use unisono::config::Config;
use unisono::plan::Algorithm;
use unisono::types::{Rank, ReduceOp};

fn world(n: i64, config: &Config, body: impl Fn(Communicator) + Sync) {
    let comms = Communicator::init_all(n, config).expect("init");
    thread::scope(|s| {
        for c in comms {
            s.spawn(|| body(c));
        }
    });
}

#[test]
fn all_reduce_everywhere() {
    for n in [1, 2, 3, 4, 5, 8] {
        for algorithm in [
            None,
            Some(Algorithm::Ring),
            Some(Algorithm::Pairwise),
            Some(Algorithm::Doubling),
            Some(Algorithm::Halving),
            Some(Algorithm::Tree),
            Some(Algorithm::Binomial),
        ] {
            let config = Config {
                algorithm,
                timeout: Some(std::time::Duration::from_secs(3)),
                ..Config::default()
            };
            world(n, &config, |c| {
                for count in [0usize, 1, 2, 5, 1000, 100_000, 1_000_003] {
                    let send: Vec<f32> =
                        (0..count).map(|i| (i % 17) as f32 + c.rank().0 as f32).collect();
                    let mut recv = vec![0f32; count];
                    c.all_reduce(&send, &mut recv, ReduceOp::Sum).expect("all_reduce");
                    let n = n as f32;
                    for (i, &x) in recv.iter().enumerate() {
                        assert_eq!(
                            x,
                            n * (i % 17) as f32 + n * (n - 1.0) / 2.0,
                            "{algorithm:?} n {n} count {count} at {i}"
                        );
                    }
                    let send: Vec<half::bf16> =
                        send.iter().map(|&x| half::bf16::from_f32(x)).collect();
                    let mut recv = vec![half::bf16::ZERO; count];
                    c.all_reduce(&send, &mut recv, ReduceOp::Avg).expect("all_reduce");
                }
                c.barrier().expect("barrier");
                let mut data = [c.rank().0; 5];
                c.broadcast(&mut data, Rank(0)).expect("bcast");
                assert_eq!(data, [0; 5]);
            });
        }
    }
}

#[test]
fn a_preference_holds_until_it_is_taken_back() {
    world(3, &Config::default(), |c| {
        let sum = || {
            c.take_chosen();
            let mut data = [1u32; 5];
            c.all_reduce_in_place(&mut data, ReduceOp::Sum).expect("all_reduce");
            assert_eq!(data, [3; 5]);
            c.take_chosen()
        };
        assert_eq!(sum(), None, "so small a call needs no plan");
        for algorithm in [Algorithm::Ring, Algorithm::Doubling] {
            c.prefer(Some(algorithm)).expect("nothing is outstanding");
            assert_eq!(sum(), Some(algorithm));
        }
        c.prefer(None).expect("nothing is outstanding");
        assert_eq!(sum(), None);
    });
}

#[test]
fn processes_links() {
    for links in ["shm", "tcp"] {
        for n in [1i64, 2, 3, 5] {
            let id = unisono::unique_id().expect("id");
            let mut config = Config {
                timeout: Some(std::time::Duration::from_secs(5)),
                init_timeout: std::time::Duration::from_secs(5),
                ..Config::default()
            };
            config.set_links(links).unwrap();
            thread::scope(|s| {
                for r in 0..n {
                    let (id, config) = (&id, &config);
                    s.spawn(move || {
                        let c = Communicator::init_rank(id, r, n, config).expect("init");
                        for count in [0usize, 1, 2, 5, 1000, 100_000, 1_000_003] {
                            let send: Vec<f32> =
                                (0..count).map(|i| (i % 17) as f32 + c.rank().0 as f32).collect();
                            let mut recv = vec![0f32; count];
                            c.all_reduce(&send, &mut recv, ReduceOp::Sum).expect("all_reduce");
                            let n = n as f32;
                            for (i, &x) in recv.iter().enumerate() {
                                assert_eq!(
                                    x,
                                    n * (i % 17) as f32 + n * (n - 1.0) / 2.0,
                                    "{links} n {n} count {count} at {i}"
                                );
                            }
                        }
                        c.barrier().expect("barrier");
                        c.destroy().expect("destroy");
                    });
                }
            });
        }
    }
}

#[test]
fn groups_fuse_and_requests_end() {
    world(3, &Config::default(), |c| {
        use unisono::comm::Args;
        use unisono::types::{Collective, Dtype};
        let n = 50usize;
        let inputs: Vec<Vec<f32>> = (0..n).map(|i| vec![i as f32 + c.rank().0 as f32; i]).collect();
        let mut outputs: Vec<Vec<f32>> = (0..n).map(|i| vec![0.0; i]).collect();
        for _ in 0..20 {
            c.group_start().expect("start");
            for (i, o) in inputs.iter().zip(&mut outputs) {
                let mut args = Args::new(Collective::AllReduce, Dtype::F32);
                (args.send, args.recv, args.count) =
                    (i.as_ptr().cast(), o.as_mut_ptr().cast(), i.len() as u64);
                let call = c.prepare(&args).expect("call");
                // SAFETY: the buffers outlive the group.
                unsafe { c.run(call).expect("collected") };
            }
            c.group_end().expect("end");
            for (i, o) in outputs.iter_mut().enumerate() {
                assert!(o.iter().all(|&x| x == 3.0 * i as f32 + 3.0));
                o.fill(0.0);
            }
        }
    });
}

#[test]
fn a_scope_waits_for_what_it_started() {
    world(4, &Config::default(), |c| {
        let (left, right) = (Rank((c.rank().0 + 3) % 4), Rank((c.rank().0 + 1) % 4));
        let mine = vec![c.rank().0; 100_000];
        let mut theirs = vec![0; 100_000];
        let mut sums = vec![0; 100_000];
        c.scope(|s| {
            s.send(&mine, right)?;
            s.all_reduce(&mine, &mut sums, ReduceOp::Sum)?;
            s.recv(&mut theirs, left)
        })
        .expect("scope");
        assert!(theirs.iter().all(|&x| x == left.0));
        assert!(sums.iter().all(|&x| x == 6));
    });
}

#[test]
fn slices_are_refused_inside_groups() {
    world(1, &Config::default(), |c| {
        c.group_start().expect("start");
        let mut out = [0u8; 2];
        let error = c.all_reduce(&[1, 2], &mut out, ReduceOp::Sum).expect_err("refused");
        assert_eq!(error.code, unisono::Code::InvalidState);
        c.group_end().expect("end");
        c.all_reduce(&[1, 2], &mut out, ReduceOp::Sum).expect("works again");
    });
}

#[test]
fn packed_calls_must_agree_one_by_one() {
    world(2, &Config::default(), |c| {
        use unisono::comm::Args;
        use unisono::types::{Collective, Dtype};
        let counts = if c.rank() == Rank(0) { [5, 3] } else { [3, 5] };
        let data = [1f32; 8];
        let mut out = [[0f32; 8]; 2];
        c.group_start().expect("start");
        for (count, out) in counts.into_iter().zip(&mut out) {
            let mut args = Args::new(Collective::AllReduce, Dtype::F32);
            (args.send, args.recv, args.count) =
                (data.as_ptr().cast(), out.as_mut_ptr().cast(), count);
            let call = c.prepare(&args).expect("call");
            // SAFETY: the buffers outlive the group.
            unsafe { c.run(call).expect("collected") };
        }
        assert_eq!(c.group_end().expect_err("mismatch").code, unisono::Code::Mismatch);
    });
}
