use super::*;

fn vars(pairs: &[(&str, &str)]) -> Vars {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect()
}

fn facts() -> Facts {
    Facts { directory: PathBuf::from("/run/user/7/unisono"), launcher: (100, 200) }
}

fn read(pairs: &[(&str, &str)]) -> Result<Launch> {
    Launch::from_vars(&vars(pairs), 0, &facts())
}

fn place(launch: &Launch) -> (u32, u32, Option<u32>, Option<u32>) {
    (launch.rank, launch.world, launch.local_rank, launch.local_world)
}

const TORCH: &[(&str, &str)] = &[
    ("RANK", "3"),
    ("WORLD_SIZE", "8"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "2"),
    ("MASTER_ADDR", "node7"),
    ("MASTER_PORT", "29500"),
];
const OMPI: &[(&str, &str)] = &[
    ("OMPI_COMM_WORLD_RANK", "1"),
    ("OMPI_COMM_WORLD_SIZE", "2"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ("PMIX_NAMESPACE", "prterun-host-77@1"),
];
const SLURM: &[(&str, &str)] = &[
    ("SLURM_PROCID", "5"),
    ("SLURM_NTASKS", "8"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NODELIST", "gpu[03-07,9],x1"),
    ("SLURM_JOB_ID", "4711"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_NNODES", "2"),
];

fn with<'a>(base: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [base, more].concat()
}

fn address(launch: &Launch) -> (&str, u16) {
    match &launch.rendezvous {
        Root::Address { host, port } => (host, *port),
        other => panic!("not an address: {other:?}"),
    }
}

#[test]
fn torchrun_meets_at_the_master_and_beside_an_agent_one_port_further() {
    let launch = read(TORCH).expect("torchrun");
    assert_eq!(place(&launch), (3, 8, Some(1), Some(2)));
    assert_eq!((launch.launcher, launch.weak_key), ("torchrun", true));
    assert!(launch.warning().is_some_and(|text| text.contains("UNISONO_JOB_KEY")));
    assert_eq!(address(&launch), ("node7", 29500));
    let agent = with(TORCH, &[("TORCHELASTIC_USE_AGENT_STORE", "True")]);
    assert_eq!(address(&read(&agent).expect("agent")), ("node7", 29501));
    let port = with(&agent, &[("UNISONO_PORT", "4000")]);
    assert_eq!(address(&read(&port).expect("port")), ("node7", 4000));
}

#[test]
fn every_launcher_is_read() {
    let launch = read(OMPI).expect("ompi");
    assert_eq!(place(&launch), (1, 2, Some(1), Some(2)));
    assert!(matches!(launch.rendezvous, Root::File(_)));
    assert!(!launch.weak_key && launch.key.is_none());
    let hydra =
        [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")];
    let launch = read(&hydra).expect("hydra");
    assert_eq!(place(&launch), (0, 2, Some(0), Some(2)));
    assert!(matches!(launch.rendezvous, Root::File(_)));
    let launch = read(SLURM).expect("slurm");
    assert_eq!(place(&launch), (5, 8, Some(1), None));
    assert_eq!(address(&launch).0, "gpu03");
    assert!((20_000..32_000).contains(&address(&launch).1));
    let id = sample_id();
    let own = [("UNISONO_ID", id.as_str()), ("UNISONO_RANK", "2"), ("UNISONO_WORLD", "4")];
    let launch = read(&own).expect("own");
    assert_eq!((launch.rank, launch.world, launch.launcher), (2, 4, "unisono run"));
    assert!(matches!(launch.rendezvous, Root::Id(_)));
}

fn sample_id() -> String {
    let addresses = ["127.0.0.1:5".parse().expect("address")];
    UniqueId::new(&addresses, Key::new([1; 32])).expect("id").to_hex()
}

#[test]
fn the_most_specific_launcher_wins() {
    assert_eq!(read(&with(OMPI, SLURM)).expect("both").launcher, "Open MPI's mpirun");
    assert_eq!(read(&with(TORCH, SLURM)).expect("both").launcher, "torchrun");
    let id = sample_id();
    let own = [("UNISONO_ID", id.as_str()), ("UNISONO_RANK", "0"), ("UNISONO_WORLD", "1")];
    assert_eq!(read(&with(&own, TORCH)).expect("both").launcher, "unisono run");
    // A job script that exports the world for PyTorch, and lets srun give the ranks.
    let script = with(SLURM, &[("WORLD_SIZE", "8"), ("MASTER_ADDR", "n1"), ("MASTER_PORT", "9")]);
    let launch = read(&script).expect("script");
    assert_eq!((launch.launcher, address(&launch)), ("Slurm's srun", ("n1", 9)));
}

#[test]
fn half_set_variables_name_the_missing_one_and_the_launcher() {
    for (pairs, missing, launcher) in [
        (&[("RANK", "0")][..], "WORLD_SIZE", "torchrun"),
        (&[("WORLD_SIZE", "2")], "RANK", "torchrun"),
        (&[("OMPI_COMM_WORLD_SIZE", "2")], "OMPI_COMM_WORLD_RANK", "Open MPI"),
        (&[("PMI_RANK", "1")], "PMI_SIZE", "Hydra"),
        (&[("SLURM_PROCID", "1")], "SLURM_STEP_NUM_TASKS", "Slurm"),
        (&[("UNISONO_RANK", "1")], "UNISONO_WORLD", "unisono run"),
        (&[("UNISONO_ID", "00")], "UNISONO_RANK", "unisono run"),
        (&[("RANK", "0"), ("WORLD_SIZE", " ")], "WORLD_SIZE", "torchrun"),
    ] {
        let error = read(pairs).expect_err(missing);
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.detail.contains(missing) && error.detail.contains(launcher), "{error}");
        assert!(error.detail.contains("missing"), "{error}");
    }
    let error =
        read(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "x")]).expect_err("port");
    assert!(error.detail.contains("MASTER_PORT is missing"), "{error}");
}

#[test]
fn an_empty_environment_lists_what_was_looked_for() {
    let error = read(&[]).expect_err("empty");
    assert_eq!(error.code, Code::NoLauncher);
    for name in ["UNISONO_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "SLURM_PROCID"] {
        assert!(error.detail.contains(name), "{error}");
    }
}

#[test]
fn wrong_values_are_shown() {
    for (rank, world, shown) in [
        ("x", "2", "RANK=\"x\""),
        ("-1", "2", "RANK=\"-1\""),
        ("0", "4294967296", "WORLD_SIZE=\"4294967296\""),
        ("2", "2", "RANK=2"),
        ("0", "0", "WORLD_SIZE=0"),
        ("0", "99999", "WORLD_SIZE=99999"),
    ] {
        let error = read(&[("RANK", rank), ("WORLD_SIZE", world)]).expect_err(shown);
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.detail.contains(shown), "{error}");
    }
    for root in ["", "host", "host:", ":5", "host:0", "host:99999"] {
        let result = read(&with(TORCH, &[("UNISONO_ROOT", root)]));
        assert_eq!(result.is_err(), !root.is_empty(), "{root}");
    }
    let nodes = with(SLURM, &[("SLURM_NODELIST", "a[")]);
    assert!(read(&nodes).expect_err("list").detail.contains("SLURM_NODELIST"));
    let id = [("UNISONO_ID", "12"), ("UNISONO_RANK", "0"), ("UNISONO_WORLD", "1")];
    assert_eq!(read(&id).expect_err("id").code, Code::InvalidId);
}

#[test]
fn a_secret_key_is_strong_and_its_absence_can_be_forbidden() {
    let strong = with(TORCH, &[("UNISONO_JOB_KEY", "secret")]);
    let launch = read(&strong).expect("key");
    assert!(!launch.weak_key && launch.warning().is_none());
    assert_eq!(launch.key, Some(Key::from_text(b"secret")));
    let required = with(TORCH, &[("UNISONO_REQUIRE_KEY", "1")]);
    let error = read(&required).expect_err("required");
    assert_eq!(error.code, Code::InvalidEnvironment);
    assert!(error.detail.contains("set UNISONO_JOB_KEY"), "{error}");
    assert!(read(&with(&required, &[("UNISONO_JOB_KEY", "s")])).is_ok());
    let root = with(OMPI, &[("UNISONO_JOB_KEY", "s"), ("UNISONO_ROOT", "[2001:db8::1]:77")]);
    assert_eq!(address(&read(&root).expect("root")), ("2001:db8::1", 77));
}

#[test]
fn a_key_may_be_any_bytes_and_other_variables_must_be_text() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = || OsString::from_vec(b"\xff\xfe key ".to_vec());
    let mut torch = vars(TORCH);
    torch.insert("UNISONO_JOB_KEY".to_owned(), bytes());
    let launch = Launch::from_vars(&torch, 0, &facts()).expect("key");
    assert!(!launch.weak_key && launch.key == Some(Key::from_text(b"\xff\xfe key")));
    for name in TEXTS {
        let mut torch = vars(TORCH);
        torch.insert((*name).to_owned(), bytes());
        let error = Launch::from_vars(&torch, 0, &facts()).expect_err(name);
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.detail.contains(name), "{error}");
    }
}

#[test]
fn what_does_not_say_whether_a_key_is_required_is_refused() {
    for value in ["true", "yes", "maybe", "2"] {
        for base in [TORCH, OMPI] {
            let pairs = with(base, &[("UNISONO_REQUIRE_KEY", value), ("UNISONO_JOB_KEY", "s")]);
            let pairs = if base == OMPI { &pairs[..pairs.len() - 1] } else { &pairs[..] };
            let error = read(pairs).expect_err(value);
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.detail.contains("UNISONO_REQUIRE_KEY"), "{error}");
        }
    }
    assert!(read(&with(TORCH, &[("UNISONO_REQUIRE_KEY", "0")])).is_ok());
}

#[test]
fn a_world_of_one_needs_no_place_to_meet() {
    for pairs in
        [[("UNISONO_RANK", "0"), ("UNISONO_WORLD", "1")], [("PMI_RANK", "0"), ("PMI_SIZE", "1")]]
    {
        assert!(matches!(read(&pairs).expect("alone").rendezvous, Root::File(_)));
    }
}

#[test]
fn several_hosts_without_a_place_to_meet_say_what_to_set() {
    let error = read(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")]);
    let error = error.expect_err("nowhere");
    assert_eq!(error.code, Code::InvalidEnvironment);
    assert!(error.detail.contains("UNISONO_ROOT") && error.detail.contains("UNISONO_JOB_KEY"));
}

#[test]
fn one_host_is_seen_in_other_variables_too() {
    let local =
        [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "9")];
    assert!(matches!(read(&local).expect("local").rendezvous, Root::File(_)));
    let mut one = SLURM.to_vec();
    one.retain(|(name, _)| *name != "SLURM_NNODES");
    let launch = read(&with(&one, &[("SLURM_NNODES", "1")])).expect("one node");
    assert_eq!(launch.local_world, Some(8));
    assert!(matches!(launch.rendezvous, Root::File(_)));
}

#[test]
fn jobs_and_instances_meet_in_different_places_and_ranks_of_one_job_in_the_same() {
    let root = |pairs: &[(&str, &str)], instance, launcher| {
        let facts = Facts { launcher, ..facts() };
        Launch::from_vars(&vars(pairs), instance, &facts).expect("launch").rendezvous
    };
    let base = root(OMPI, 0, (1, 1));
    assert_eq!(base, root(OMPI, 0, (2, 2)), "the job's own name is enough");
    assert_ne!(base, root(OMPI, 1, (1, 1)));
    let mut other = OMPI.to_vec();
    other[4].1 = "prterun-host-78@1";
    assert_ne!(base, root(&other, 0, (1, 1)));
    let mut zero = OMPI.to_vec();
    zero[0].1 = "0";
    assert_eq!(base, root(&zero, 0, (1, 1)));
    let nameless = &OMPI[..4];
    assert_ne!(root(nameless, 0, (1, 1)), root(nameless, 0, (1, 2)));
    assert_ne!(root(SLURM, 0, (1, 1)), root(SLURM, 1, (1, 1)));
    assert_ne!(root(TORCH, 0, (1, 1)), root(TORCH, 1, (1, 1)));
    let id = sample_id();
    let own = [("UNISONO_ID", id.as_str()), ("UNISONO_RANK", "0"), ("UNISONO_WORLD", "1")];
    let error = Launch::from_vars(&vars(&own), 1, &facts()).expect_err("second");
    assert_eq!(error.code, Code::Unsupported);
}

#[test]
fn the_environment_of_this_process_can_be_read() {
    let facts = Facts::of_process(&Vars::new());
    assert!(facts.directory.is_absolute());
    assert!(facts.launcher.0 > 0);
}
