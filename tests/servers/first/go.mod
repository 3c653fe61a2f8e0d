module git.moleculesai.app/molecule-ai/libmol/tests/servers/first

go 1.25.0

require (
	git.moleculesai.app/molecule-ai/libmol/go/mol v0.0.0
	git.moleculesai.app/molecule-ai/libmol/go/templateserver v0.0.0
)

replace (
	git.moleculesai.app/molecule-ai/libmol/go/mol => ../../../go/mol
	git.moleculesai.app/molecule-ai/libmol/go/templateserver => ../../../go/templateserver
)
