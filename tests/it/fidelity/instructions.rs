//! Every Dockerfile instruction, including those that only some builders support.

use super::Builder::{BuildKit, Classic, Podman};
use super::assert_same;
use super::template::{Outcome, template};
use crate::support::engine::BUSYBOX;

fn with_shell(rest: &str) -> String {
    format!("FROM {BUSYBOX}\n{rest}")
}

#[test]
fn image_configuration() {
    assert_same(&template(&with_shell(
        "\
MAINTAINER somebody
ENV ONE=1 TWO=\"two words\"
ENV PATH=$PATH:/more
LABEL one=1 \"two words\"=\"a b\"
WORKDIR /work
WORKDIR below
EXPOSE 80 443/tcp 53/udp
VOLUME /data [\"/more\"]
USER 1000:1000
STOPSIGNAL SIGQUIT
SHELL [\"/bin/sh\", \"-ec\"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=1s --retries=2 CMD true
ENTRYPOINT [\"/bin/echo\", \"a b\"]
CMD [\"c\"]
",
    )));
}

#[test]
fn shell_forms_and_overridden_settings() {
    assert_same(&template(&with_shell(
        "\
SHELL [\"/bin/sh\", \"-c\"]
HEALTHCHECK NONE
CMD [\"first\"]
ENTRYPOINT echo $HOME
CMD echo second
VOLUME [\"/a\", \"/b c\"]
USER nobody
",
    )));
}

#[test]
fn onbuild_triggers() {
    assert_same(&template(&with_shell(
        "ONBUILD COPY . /src\nONBUILD RUN [\"true\"]\nONBUILD ENV X=1\n",
    )));
}

/// libmol's labels take precedence, as with `docker build --label`.
#[test]
fn libmol_labels_override_the_dockerfile() {
    assert_same(&template(
        "FROM scratch\nCOPY . /\nLABEL org.opencontainers.image.source=theirs ai.moleculesai.libmol.runtime=theirs kept=theirs\n",
    ));
}

#[test]
fn file_changes_of_steps() {
    assert_same(
        &template(&with_shell(
            "\
COPY . /all/
RUN cd /all && rm -r gone && chmod 4750 one && chown 12:34 two && ln one hard && ln -s one soft && mkfifo fifo
RUN rm -r /all/replaced && echo file > /all/replaced && umask 077 && mkdir /private && echo x > /private/x
COPY other /all/
",
        ))
        .files(["one", "two", "gone/a", "gone/b", "replaced/a"])
        .files(["other/one", "other/new"]),
    );
}

#[test]
fn multi_stage_builds() {
    assert_same(
        &template(&format!(
            "\
FROM {BUSYBOX} AS first
COPY one /out/one
RUN echo made > /out/made && ln -s made /out/link && ln /out/made /out/hard
FROM first AS second
RUN echo more > /out/more
FROM scratch
COPY --from=first /out /first
COPY --from=1 /out/more /second/
COPY --from={BUSYBOX} /bin/busybox /bin/
COPY two /
"
        ))
        .files(["one", "two"]),
    );
}

#[test]
fn args_before_and_after_from() {
    assert_same(&template(&format!(
        "\
ARG BASE={BUSYBOX}
ARG WORD=outer
FROM $BASE
ARG WORD
ARG OTHER=inner
ARG TARGETARCH
ENV SAID=\"$WORD $OTHER\"
RUN echo \"$WORD $OTHER $TARGETARCH\" > /said
"
    )));
}

#[test]
fn copy_and_add_with_chown() {
    assert_same(
        &template(&with_shell(
            "\
COPY passwd /etc/passwd
COPY group /etc/group
COPY --chown=12:34 one /number
COPY --chown=somebody:people one in /name/
ADD --chown=somebody one /added
",
        ))
        .file(
            "passwd",
            "root:x:0:0::/:/bin/sh\nsomebody:x:1234:5678::/:/bin/sh\n",
        )
        .bytes("group", "root:x:0:\npeople:x:4321:\nsomebody:x:5678:\n")
        .files(["one", "in/two"]),
    );
}

#[test]
fn copy_with_chmod() {
    assert_same(
        &template("FROM scratch\nCOPY --chmod=4750 one /\nCOPY --chmod=600 in /in/\n")
            .files(["one", "in/two"])
            .fails_on(Classic, "chmod"),
    );
}

#[test]
fn copy_sources_with_wildcards() {
    assert_same(
        &template(
            "\
FROM scratch
COPY *.txt /txt/
COPY f?le [ab] /more/
COPY in/*/deep /deep/
COPY in* /ins/
COPY [\"with space\", \"back\\\\slash\", \"/quoted/\"]
",
        )
        .files(["a.txt", "b.txt", "c.md", "file", "fle", "a", "b", "c"])
        .files([
            "in/x/deep/one",
            "in/y/deep/two",
            "inner",
            "with space",
            "backslash",
        ]),
    );
}

#[test]
fn copy_destinations() {
    assert_same(
        &template(
            "\
FROM scratch
WORKDIR /work
COPY one .
COPY one ./renamed
COPY in below/
COPY in/two /
COPY ./in/../one /cleaned
COPY / /root/
COPY one in /both/
",
        )
        .files(["one", "in/two", "in/deep/three"]),
    );
}

#[test]
fn a_missing_copy_source() {
    assert_same(
        &template("FROM scratch\nCOPY folder-that-git-dropped/ /x/\n")
            .fails_on(BuildKit, "folder-that-git-dropped")
            .fails_on(Classic, "folder-that-git-dropped")
            .fails_on(Podman, "folder-that-git-dropped"),
    );
}

#[test]
fn an_ignored_copy_source() {
    assert_same(
        &template("FROM scratch\nCOPY secret /\n")
            .file(".dockerignore", "secret\n")
            .files(["secret"])
            .fails_on(BuildKit, "secret")
            .fails_on(Classic, "secret")
            .fails_on(Podman, "secret"),
    );
}

/// `ADD` unpacks an archive, and copies a file that only has an archive's name.
#[test]
fn add_unpacks_archives() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o640);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(123_456_789);
    header.set_size(5);
    archive
        .append_data(&mut header, "in/file", &b"hello"[..])
        .unwrap();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive.append_link(&mut header, "in/link", "file").unwrap();
    let archive = archive.into_inner().unwrap();
    assert_same(
        &template("FROM scratch\nADD archive.tar /unpacked/\nADD no-archive.tar /\nCOPY archive.tar /kept/\nADD one /\n")
            .bytes("archive.tar", archive)
            .file("no-archive.tar", "not at all")
            .files(["one"]),
    );
}

#[test]
fn comments_continuations_and_the_escape_directive() {
    assert_same(&template(&format!(
        "\
# escape=`
# a comment
FROM {BUSYBOX}
RUN echo one `
    # in between
    && echo two > /said

  COPY Dockerfile `
    C:\\like\\windows
"
    )));
}

#[test]
fn a_dockerfile_with_a_byte_order_mark() {
    assert_same(&template("\u{feff}FROM scratch\nCOPY . /\n"));
}

#[test]
fn run_mounts() {
    assert_same(
        &template(&with_shell(
            "\
RUN --mount=type=cache,id=fidelity,target=/cache echo x >> /cache/x && head -n 1 /cache/x > /cached
RUN --mount=type=bind,source=in,target=/in cat /in/one > /bound
RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/x
",
        ))
        .files(["in/one"])
        .fails_on(Classic, "--mount option requires BuildKit"),
    );
}

/// BuildKit's built-in frontend supports heredocs since Docker 23.
#[test]
fn heredocs() {
    assert_same(
        &template(&with_shell(
            "RUN <<EOF\necho one > /one\necho two > /two\nEOF\nCOPY <<file /three\nthree\nfile\n",
        ))
        .on(BuildKit, Outcome::VersionDependent)
        .on(Classic, Outcome::VersionDependent)
        .on(Podman, Outcome::VersionDependent),
    );
}

/// BuildKit fails to fetch the frontend, because the registry does not exist. The other builders treat the
/// line as a comment.
#[test]
fn an_unavailable_frontend() {
    assert_same(
        &template("# syntax=registry.invalid/docker/dockerfile:1\nFROM scratch\nCOPY . /\n")
            .fails_on(BuildKit, "registry.invalid"),
    );
}

#[test]
fn an_unavailable_base_image() {
    assert_same(
        &template("FROM registry.invalid/no/such:image\nCOPY . /\n")
            .fails_on(BuildKit, "registry.invalid")
            .fails_on(Classic, "registry.invalid")
            .fails_on(Podman, "registry.invalid"),
    );
}

#[test]
fn an_unknown_instruction() {
    assert_same(
        &template("FROM scratch\nFLY me\n")
            .fails_on(BuildKit, "FLY")
            .fails_on(Classic, "FLY")
            .fails_on(Podman, "FLY"),
    );
}

#[test]
fn a_failing_step() {
    assert_same(
        &template(&with_shell("RUN echo first\nRUN exit $((6 * 7))\n"))
            .fails_on(BuildKit, "42")
            .fails_on(Classic, "42")
            .fails_on(Podman, "42"),
    );
}

/// The output of a step does not change the image.
#[test]
fn long_and_binary_build_output() {
    assert_same(&template(&with_shell(
        "\
RUN head -c 5242880 /dev/zero | tr '\\0' x; echo; echo -e '\\033[31mred\\033[0m\\r\\033[2K \\xff\\xfe \\0 end'; head -c 1000 /bin/busybox
RUN echo done > /done
",
    )));
}
