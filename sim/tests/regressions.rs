//! Schedules that once broke the product, shrunk, each with the line that tells its story.

use std::{fs, path::Path};

use hovercraft_sim::{Runner, Schedule};

#[test]
fn what_once_broke_does_not_break_again() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    let stories = fs::read_to_string(directory.join("README.md")).expect("the stories are there");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    for path in files {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        assert!(stories.contains(&name), "{name} has no line in README.md");
        let schedule = Schedule::load(&path).expect("a regression is a schedule");
        if let Some(violation) = Runner::registers().run(&schedule).violation {
            panic!("{name} breaks again: {violation}");
        }
    }
}
