//! Generations on disk, step by step.

use super::*;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        Self { dir }
    }

    fn put(&self, name: &str, text: &str) -> Listing {
        let source = self.dir.path().join("source");
        fs::write(source.join(name), text).unwrap();
        Listing::of(&source, &[], 1000).unwrap()
    }

    fn store(&self) -> Store {
        Store::open(&self.folder(), 2).unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("definitions")
    }

    /// A new generation, in force.
    fn next(&self, store: &mut Store, text: &str) -> Manifest {
        let copy = store
            .copy(&self.put("x.yar", text), Path::new("origin"), 1)
            .unwrap();
        let manifest = store.admit(copy).unwrap();
        store.activate(&manifest).unwrap();
        manifest
    }
}

fn numbers(store: &Store) -> Vec<u64> {
    let candidates = store.candidates();
    candidates.iter().map(|one| one.generation).collect()
}

#[test]
fn numbers_grow_and_some_are_kept() {
    let bench = Bench::new();
    let mut store = bench.store();
    for text in ["a", "b", "c", "d"] {
        bench.next(&mut store, text);
    }
    assert_eq!(numbers(&store), [4, 3, 2]);
    let mut store = bench.store();
    assert_eq!(numbers(&store), [4, 3, 2]);
    let bad = store
        .copy(&bench.put("x.yar", "bad"), Path::new(""), 1)
        .unwrap();
    assert_eq!(bad.manifest.generation, 5);
    store.discard(&bad).unwrap();
    let next = bench.next(&mut store, "e");
    assert_eq!(next.generation, 6, "a number is never used twice");
    assert_eq!(numbers(&store), [6, 4, 3]);
    assert!(matches!(
        store.kept(2),
        Err(DefinitionsError::NotKept { generation: 2, .. })
    ));
}

#[test]
fn a_rollback_refuses_what_it_left_and_goes_on_backwards() {
    let bench = Bench::new();
    let mut store = bench.store();
    let [first, second, third] = ["a", "b", "c"].map(|text| bench.next(&mut store, text));
    store.roll_back(&third, &second).unwrap();
    assert!(store.is_refused(&third.prints()));
    let mut store = bench.store();
    let standing =
        |store: &Store| [&first, &second, &third].map(|manifest| store.standing(manifest));
    assert_eq!(
        standing(&store),
        [Standing::Previous, Standing::Active, Standing::Refused]
    );
    store.roll_back(&second, &first).unwrap();
    assert_eq!(store.previous(), None);
    store.activate(&third).unwrap();
    assert_eq!(
        standing(&store),
        [Standing::Previous, Standing::Kept, Standing::Active]
    );
}

#[test]
fn an_engine_keeps_its_number_while_its_definitions_stay() {
    let bench = Bench::new();
    let mut store = bench.store();
    bench.put("x.ndb", "a");
    let engines = |manifest: &Manifest| {
        let engines = manifest.engines.iter();
        engines.map(|engine| engine.generation).collect::<Vec<_>>()
    };
    let first = bench.next(&mut store, "a");
    bench.put("x.ndb", "b");
    let second = bench.next(&mut store, "a");
    assert_eq!(engines(&second), [2, 1]);
    assert_ne!(first.prints(), second.prints());
    bench.put("x.ndb", "a");
    let third = bench.next(&mut store, "a");
    assert_eq!(engines(&third), [1, 1]);
    assert_eq!(first.prints(), third.prints());
}

#[test]
fn interrupted_steps_leave_nothing() {
    let bench = Bench::new();
    let mut store = bench.store();
    bench.next(&mut store, "a");
    store
        .copy(&bench.put("x.yar", "b"), Path::new(""), 1)
        .unwrap();
    assert!(bench.folder().join("new-2").exists());
    fs::write(bench.folder().join("state.new"), "{").unwrap();
    let store = bench.store();
    assert_eq!(store.numbers().unwrap(), [1]);
    assert!(!bench.folder().join("new-2").exists());
    assert!(!bench.folder().join("state.new").exists());
}

#[test]
fn a_damaged_state_file_finds_the_newest_whole_generation() {
    let bench = Bench::new();
    let mut store = bench.store();
    let first = bench.next(&mut store, "a");
    fs::write(bench.folder().join("state.json"), "{").unwrap();
    assert_eq!(bench.store().candidates(), [first]);
}

#[test]
fn a_changed_missing_or_added_file_is_noticed() {
    let bench = Bench::new();
    let mut store = bench.store();
    bench.put("y.yar", "other");
    let manifest = bench.next(&mut store, "a");
    store.verify(&manifest).unwrap();
    let folder = store.engine_folder(manifest.generation, EngineKind::Yara);
    let damages: [&dyn Fn(); 3] = [
        &|| fs::write(folder.join("z.yar"), "more").unwrap(),
        &|| fs::remove_file(folder.join("y.yar")).unwrap(),
        &|| {
            fs::remove_file(folder.join("x.yar")).unwrap();
            fs::write(folder.join("x.yar"), "b").unwrap();
        },
    ];
    for damage in damages {
        damage();
        assert!(matches!(
            store.verify(&manifest),
            Err(DefinitionsError::Damaged { .. })
        ));
        let _ = fs::remove_file(folder.join("z.yar"));
    }
}

#[test]
fn a_source_is_known_by_its_stamp_and_by_what_it_holds() {
    let bench = Bench::new();
    let mut store = bench.store();
    let manifest = bench.next(&mut store, "a");
    let listing = bench.put("x.yar", "a");
    store.take(&listing, manifest.prints()).unwrap();
    let store = bench.store();
    assert!(store.is_taken(&listing) && store.was_taken(&manifest.prints()));
    assert!(!store.is_taken(&bench.put("x.yar", "ab")));
}
