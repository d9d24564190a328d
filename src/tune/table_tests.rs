use proptest::prelude::*;

use super::*;

const GOOD: &str = "unisono-tuning 1
# a machine
all_reduce ranks=2 hosts=1 reach=messages bytes<=65536 doubling

all_reduce ranks=2 hosts=1 reach=messages bytes=any model
  reduce ranks=4 hosts=2 reach=stages bytes<=8 ring
";

#[test]
fn a_table_is_read_and_written() {
    let table = Table::parse(GOOD).expect("a table");
    let place = |collective, ranks, hosts, reach| Place { collective, ranks, hosts, reach };
    let first = place(Collective::AllReduce, 2, 1, Reach::Messages);
    let last = place(Collective::Reduce, 4, 2, Reach::Stages);
    let doubling = Pick::By(Algorithm::Doubling);
    let rows = [
        Row { place: first, bytes: 65_536, pick: doubling },
        Row { place: first, bytes: u64::MAX, pick: Pick::Model },
        Row { place: last, bytes: 8, pick: Pick::By(Algorithm::Ring) },
    ];
    assert_eq!(table.rows(), rows);
    assert_eq!(Table::parse(&table.to_string()), Ok(table));
    assert_eq!(Table::parse(MAGIC), Ok(Table::default()));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let at = "all_reduce ranks=2 hosts=1 reach=messages";
    for (line, said) in [
        (
            "all_rdeuce ranks=2 hosts=1 reach=messages bytes=any ring",
            "no collective \"all_rdeuce\"",
        ),
        ("send ranks=2 hosts=1 reach=messages bytes=any pairwise", "there is no choice"),
        ("all_reduce rank=2 hosts=1 reach=messages bytes=any ring", "expected ranks= and a number"),
        ("all_reduce ranks=+2 hosts=1 reach=messages bytes=any ring", "expected ranks="),
        ("all_reduce ranks=0 hosts=1 reach=messages bytes=any ring", "ranks=0 is not 1 to 16384"),
        ("all_reduce ranks=2 hosts=3 reach=messages bytes=any ring", "hosts=3 is not 1 to the 2"),
        ("all_reduce ranks=2 hosts=1 reach=far bytes=any ring", "\"reach=far\": expected reach="),
        (&format!("{at} bytes<=x ring"), "expected bytes<= and a number"),
        (&format!("{at} bytes<=99999999999999999999 ring"), "expected bytes<="),
        (&format!("{at} bytes=any rign"), "no algorithm \"rign\""),
        (&format!("{at} bytes=any"), "no algorithm"),
        (&format!("{at} bytes=any ring ring"), "\"ring\" follows the algorithm"),
        (&format!("{at} bytes<=7 ring\n{at} bytes<=7 tree"), "holds for bytes<=7 already"),
    ] {
        let (number, why) = Table::parse(&format!("{MAGIC}\n#\n{line}\n")).expect_err(line);
        assert!(why.contains(said), "{line}: {why}");
        assert_eq!(number, 2 + line.lines().count(), "{line}: {why}");
    }
    for text in ["", "\n", "unisono-tuning 2\n", "all_reduce"] {
        assert_eq!(Table::parse(text).expect_err(text).0, 1);
    }
    let long = format!("{MAGIC}\n{}", "#".repeat(TEXT_MAX));
    assert!(Table::parse(&long).expect_err("long").1.contains("at most 65536"));
}

#[test]
fn a_table_has_an_end_and_the_longest_one_travels() {
    let line = |limit: usize| format!("barrier ranks=2 hosts=1 reach=stages bytes<={limit} tree\n");
    let text = |rows| format!("{MAGIC}\n{}", (0..rows).map(line).collect::<String>());
    let table = Table::parse(&text(ROWS_MAX)).expect("a long table");
    assert_eq!(Table::decode(&table.encode()), Some(table));
    let (number, why) = Table::parse(&text(ROWS_MAX + 1)).expect_err("too long");
    assert_eq!((number, why.as_str()), (ROWS_MAX + 2, "more than 256 rows"));
}

fn any_row() -> impl Strategy<Value = Row> {
    let collective = prop::sample::select(Collective::ALL);
    let pick = prop::sample::select(picks().collect::<Vec<_>>());
    let reach = prop::sample::select(REACHES.map(|(reach, _)| reach).to_vec());
    let sizes = (1..=WORLD_MAX).prop_flat_map(|ranks| (Just(ranks), 1..=ranks));
    (collective, sizes, reach, any::<u64>(), pick).prop_map(
        |(collective, (ranks, hosts), reach, bytes, pick)| Row {
            place: Place { collective, ranks, hosts, reach },
            bytes,
            pick,
        },
    )
}

proptest! {
    #[test]
    fn tables_round_trip(rows in prop::collection::vec(any_row(), 0..20)) {
        if let Ok(table) = Table::new(rows) {
            prop_assert_eq!(Table::parse(&table.to_string()), Ok(table.clone()));
            let bytes = table.encode();
            prop_assert_eq!(Table::decode(&bytes), Some(table));
            for cut in (0..bytes.len()).filter(|cut| cut % ROW_BYTES != 0) {
                prop_assert_eq!(Table::decode(&bytes[..cut]), None);
            }
        }
    }

    #[test]
    fn no_text_and_no_bytes_bring_the_reader_down(
        text in "(unisono-tuning 1\n)?([a-z_]{1,8}|ranks=|hosts=|reach=|bytes<=|[0-9]{1,22}| |\n|.){0,40}",
        bytes in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let _ = Table::parse(&text);
        if let Some(table) = Table::decode(&bytes) {
            prop_assert_eq!(table.encode(), bytes);
        }
    }

    #[test]
    fn a_changed_table_is_read_or_refused(at in 0..GOOD.len(), by in any::<char>()) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..=at, &by.to_string());
        if let Err((number, why)) = Table::parse(&text) {
            prop_assert!(number <= text.lines().count() && !why.is_empty());
        }
    }
}
