//! The Rust API: typed calls, scopes and groups, on threads and on every link.

use std::sync::Arc;
use std::thread;

use unisono::Code;
use unisono::comm::Communicator;
use unisono::config::{Config, Tuning};
use unisono::plan::Algorithm;
use unisono::tune::table::Table;
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

/// Ranks with sockets between them, each with a table of its own, or none.
fn tabled(tables: &[Option<Tuning>], body: impl Fn(unisono::Result<Communicator>) + Sync) {
    let id = unisono::unique_id().expect("id");
    thread::scope(|s| {
        for (rank, tuning) in (0..).zip(tables) {
            let config = Config { shm: false, tuning: tuning.clone(), ..Config::default() };
            let world = i64::try_from(tables.len()).expect("a few");
            let (id, body) = (&id, &body);
            s.spawn(move || body(Communicator::init_rank(id, rank, world, &config)));
        }
    });
}

#[test]
fn all_ranks_choose_by_the_table_of_rank_0() {
    let table = |algorithm: &str| {
        let row = |ranks| {
            format!("all_reduce ranks={ranks} hosts={ranks} reach=messages bytes=any {algorithm}")
        };
        let text = format!("unisono-tuning 1\n{}\n{}\n", row(3), row(2));
        Some(Tuning::Table(Arc::new(Table::parse(&text).expect("a table"))))
    };
    let taken = |c: &Communicator| {
        c.take_chosen();
        let mut data = [1u32; 5];
        c.all_reduce_in_place(&mut data, ReduceOp::Sum).expect("all_reduce");
        assert_eq!(data, [c.world_size(); 5]);
        c.take_chosen()
    };
    let absent = Some(Tuning::File("/nowhere/table".to_owned()));
    tabled(&[table("tree"), absent, table("binomial")], |made| {
        let c = made.expect("a communicator");
        assert_eq!(taken(&c), Some(Algorithm::Tree));
        assert!(c.notes().iter().any(|note| note.contains("2 measured points")), "{:?}", c.notes());
        // It was made without rank 0, and has its table all the same.
        let part = c.split(i32::from(c.rank() == Rank(0)), 0).expect("a split").expect("a part");
        if part.world_size() == 2 {
            assert_eq!(taken(&part), Some(Algorithm::Tree));
        }
    });
    tabled(&[None, table("tree"), table("tree")], |made| {
        let taken = taken(&made.expect("a communicator"));
        assert!(taken.is_some() && taken != Some(Algorithm::Tree), "{taken:?}");
    });
}

#[test]
fn a_table_that_rank_0_cannot_read_is_an_error_everywhere() {
    let name = format!("unisono-communicator-{}.tuning", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, "unisono-tuning 1\nall_reduce by magic\n").expect("a file");
    let file = Some(Tuning::File(path.to_str().expect("text").to_owned()));
    tabled(&[file.clone(), None], |made| {
        let error = made.expect_err("rank 0's table is bad");
        assert_eq!(error.code, Code::InvalidEnvironment);
        let named = error.detail.contains("UNISONO_TUNING=") && error.detail.contains("line 2: ");
        assert!(named, "{error}");
    });
    let config = Config { tuning: file, ..Config::default() };
    let error = Communicator::init_all(2, &config).expect_err("so it is for threads");
    assert!(error.detail.contains("line 2: "), "{error}");
    std::fs::remove_file(path).expect("it was there");
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
        assert_eq!(error.code, Code::InvalidState);
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
        assert_eq!(c.group_end().expect_err("mismatch").code, Code::Mismatch);
    });
}
