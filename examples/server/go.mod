module git.moleculesai.app/molecule-ai/libmol/examples/server

go 1.24

require git.moleculesai.app/molecule-ai/libmol/go/mol v0.0.0

replace git.moleculesai.app/molecule-ai/libmol/go/mol => ../../go/mol
