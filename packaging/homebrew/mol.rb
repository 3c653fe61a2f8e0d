# A formula for a Homebrew tap, on macOS and Linux: it installs a release archive. Not run: check it with `brew audit` and
# `brew test` before you publish it.
#
# For a release, set the version, and the checksums from its SHA256SUMS.
class Mol < Formula
  desc "Build workspace images and start workspaces"
  homepage "https://git.moleculesai.app/molecule-ai/libmol"
  version "0.1.0"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    depends_on macos: :monterey

    on_arm do
      url "#{homepage}/releases/download/v#{version}/libmol-#{version}-aarch64-apple-darwin.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
    on_intel do
      url "#{homepage}/releases/download/v#{version}/libmol-#{version}-x86_64-apple-darwin.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
  end

  on_linux do
    on_arm do
      url "#{homepage}/releases/download/v#{version}/libmol-#{version}-aarch64-unknown-linux-gnu.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
    on_intel do
      url "#{homepage}/releases/download/v#{version}/libmol-#{version}-x86_64-unknown-linux-gnu.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
  end

  def install
    prefix.install Dir["*"]
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/mol version")
    assert_equal "local molecule-local", shell_output("env -u MOLECULE_IMAGE_REGISTRY #{bin}/mol resolve").chomp
    (testpath/"abi.c").write <<~C
      #include <mol.h>
      int main(void) { return mol_abi_version() != MOL_ABI_VERSION; }
    C
    system ENV.cc, "abi.c", "-I#{include}", "-L#{lib}", "-lmol", "-Wl,-rpath,#{lib}", "-o", "abi"
    system "./abi"
  end
end
