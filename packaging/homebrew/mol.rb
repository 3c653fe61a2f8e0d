# A formula for Homebrew on Linux. Not run: check it with `brew audit` and `brew test` before you publish it.
#
# For a release, replace the tag, and add its commit as `revision:`.
class Mol < Formula
  desc "Build workspace images and start workspaces"
  homepage "https://git.moleculesai.app/molecule-ai/libmol"
  url "https://git.moleculesai.app/molecule-ai/libmol.git", tag: "v0.1.0"
  license any_of: ["MIT", "Apache-2.0"]
  head "https://git.moleculesai.app/molecule-ai/libmol.git", branch: "main"

  depends_on "binutils" => :build
  depends_on "go" => :build
  depends_on "rust" => :build
  depends_on :linux

  def install
    system "make", "command"
    system "make", "install", "PREFIX=#{prefix}"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/mol version")
    assert_equal "local molecule-local", shell_output("env -u MOLECULE_IMAGE_REGISTRY #{bin}/mol resolve").chomp
    (testpath/"abi.c").write <<~C
      #include <mol.h>
      int main(void) { return mol_abi_version() != MOL_ABI_VERSION; }
    C
    system ENV.cc, "abi.c", "-I#{include}", "-L#{lib}", "-lmol", "-o", "abi"
    system "./abi"
  end
end
