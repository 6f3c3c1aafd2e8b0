"""Whether release notes ask for manual work. When in doubt they do: a version that waits costs less than a broken app.

Notes are searched by paragraph and list item, since a sentence may span lines. Phrases that rule out work (`HARMLESS`) are
blanked first, so that "No breaking changes, but you must …" is caught by its second half. `WORK` then matches what asks for work
anywhere. Since no list is complete, a clause about an operator's world (volumes, ports, tokens; what is different now) counts as
well, unless it begins the way developers report changes ("Fixes …").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Length of the overlapping windows in which a paragraph is searched: an operator's patterns may take quadratic time.
_WINDOW, _OVERLAP = 2000, 300
_MOST_PASSAGES = 50
_ITEM = re.compile(r"[ \t]*(?:[-*+•] |\d{1,3}[.)] |#|>|\||```)")


def _words(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


def _any(words: str) -> str:
    """Match one of these words; `=` stands for a space or a hyphen, `~` for an optional one."""
    return "(?:" + "|".join(word.replace("=", "[- ]").replace("~", "[- ]?") for word in words.split()) + ")"


_WHO = _any(
    "you one everyone everybody anyone people operators? admins? administrators? maintainers? installations? instances? users?"
)
_DUTY = rf"(?:{_any('must shall should')}|(?:ha(?:ve|s)|needs?|ought) to|(?:is|are) {_any('required advised expected asked')} to)"
_MADE = _any(
    r"set run done made put given re\w{2,20} add chang delet mov updat upgrad adjust edit check creat copi clear drop export"
    r" import migrat pass provid point insert stop started turned enabled disabled purg delay interrupt unavailable lost slow"
)
_THING = _any(
    "volumes? databases? db secrets? variables? env environment files? folders? director(?:y|ies) data tables? columns?"
    " containers? networks? config(?:s|urations?)? settings? options? index(?:es)? indices keys? certificates? passwords?"
    " tokens?"
    " caches?"
    " plugins? extensions? themes? overrides? labels? services? stacks? clients? hosts? domains? dns records? schemas? backups?"
)
_YOURS = _any(
    r"\.?env\b config setting environment database db\b data\b volume secret compose server instance install deploy backup"
    r" override custom reverse prox dns plugin extension theme template script app\.ini client provider firewall stack clone"
    r" recipe host domain"
)
_STORE = _any(
    "postgres(?:ql)? pgvector mariadb mysql mongo(?:db)? redis elasticsearch opensearch meilisearch clickhouse database"
)
_UPGRADE = _any(r"up(?:grad|dat)\w* re~deploy\w* deploy\w* install\w* roll\w* pull\w* restart\w* switch\w* starting")
_CHANGE = _any(
    "remove delete drop prune detach clear move copy convert import adjust edit change update set unset add create insert"
    " generate define provide replace review check verify revisit swap fill=in run execute migrate point merge"
)
_AGAIN = _any(
    "create build index generate configure deploy start install enter import encrypt pair login authenticate run enable"
    " register name upload connect issue sync"
)
_PROGRAM = _any(r"sudo psql pg_dump(?:all)? pg_upgrade mysqldump mysql_upgrade mariadb-upgrade rake artisan manage\.py kc\.sh")
_NO_MORE = _any(
    "supports? supported works? working available recogni[sz]ed reads? honou?red accepts? accepted starts? possible"
    " provide[ds]?"
    " ships? shipped include[ds]? contains? exists? valid allowed part runs? listens? uses? exposes? enabled"
)
_ONCE = _any(r"additional extra following these further special few some one-time one-off p(?:re|ost)-\w{3,10} two three several")
_LOSS = _any(
    r"data=loss downtime outage irreversibl\w{1,3} one=way undone no=way=back point=of=no=return maintenance=(?:mode|window)"
)
_SETS = _any("set unset add remove[ds]? rename[ds]? change define bump adjust use provide insert generate put export move[ds]?")
#: Beginnings of clauses in which developers report changes. Such a clause is harmless unless it matches one of the above.
_REPORTS = _any(
    r"(?:bug|hot)?fix(?:es|ed|ing)? add(?:s|ed|ing)? improv\w* show(?:s|ed|ing)? support(?:s|ed|ing)? bump(?:s|ed|ing)?"
    r" refactor\w*"
    r" hid(?:e|es|den)? display\w* prevent\w* handl(?:e|es|ed|ing) correct(?:s|ed|ly)? translat\w* document\w* tests?(?:ed)?"
    r" speed\w*"
    r" faster reduc\w* optimi[sz]\w* clean\w* polish\w* security feat(?:ure)?s? chore ci style perf\w* build internal\w* thanks"
    r" updat(?:e|es|ed) upgrad(?:e|es|ed) allow(?:s|ed|ing)? mak(?:e|es|ing) revert(?:s|ed)? new less fewer better smaller"
    r" nicer"
    r" remembers? caches? avoid(?:s|ed)? escap(?:e|es|ed) sanitiz\w* validat\w* rework\w* redesign\w* pin(?:s|ned)? lint\w*"
    r" typos?"
    r" tweak\w* simplif\w* tid(?:y|ies|ied) minor various several optional(?:ly)? introduc\w* implement\w* includ(?:e|es"
    r"|ing) comments? docs? readme rebuilt (?:just|only)=a"
)
_BEGINS = r"(?:\A|(?<=[.,;!?] )|(?<= but )|(?<= and ))(?:[-*+•] |\d{1,3}[.)] |#{1,6} )?+[`\"*_(]{0,3}+"
#: A clause with nothing blanked that is not a report.
_DOUBT = rf"{_BEGINS}(?!{_REPORTS}\b)(?![^.,;!?]{{0,300}}\0)"
_REST = r"(?:[^.,;!?\0]|[.,](?! )){0,300}?"
#: Descriptions of what is different now, or of when something works and when not.
_DIFFERENT = _any(
    r"now no=longer any~more from=now=on as=of since instead until till unless older=than fails? failed lost void invalid\w*"
    r" rejected refused ignored removed deleted (?:switch|turn)(?:ed)?=(?:off|on) disabled enabled expir\w* revoked"
    r" read-only lock\w* hours?"
    r" minutes? \d+=?[gm]i?b slow\w* stops? stopped waits? recommended advisable expected expects? wants? needed moves?"
    r" moved split"
    r" changed changes different\w* differs? replaced renamed dropped gone convert\w* conversion best=to better=to wise=to"
    r" worth"
    r" killed blocked closed denied unsupported retired discontinued obsolete incompatible otherwise else anew separate\w*"
    r" twice"
    r" ends?=up ended must forgets? interrupted"
    r" existing old previous former could=not cannot can't (?:was|were|formerly|previously)=[`/\d\"'] stays?"
    r" unreachable empty unusable used=to"
)
#: Things that operators deal with, and users of an app do not.
_OPERATORS = _any(
    r"volumes? mounts? mounted ports? firewalls? prox(?:y|ies) dns env environment variables? config\w*"
    r" compose(?:\.\S{1,20})? images?=tag"
    r" containers? buckets? secrets? tokens? keys? api ldap smtp oidc saml sso oauth s3 postgres\w* mysql mariadb redis"
    r" elasticsearch"
    r" opensearch mongodb? database db clusters? federat\w* storage\w* index(?:es)? migrat\w* webhooks? caddyfile nginx"
    r" traefik apache"
    r" certificates? tls hostname\w* cron\w* workers? queues? backups? upgrad\w* install\w* deploy\w* restart\w* sessions?"
    r" plugins? themes?"
    r" extensions? middlewares? entrypoints? labels? overrides? replicas? memory cpus? disk owner\w* uid root=user schema"
    r" "
    r" operators? admins? administrators? settings? defaults? sample app\.ini settings\.py flags? endpoints?"
)
#: Beginnings of instructions.
_ORDER = _any(
    "point open swap give adapt wait stop start tell log sign compare check look review inspect ensure allow=list grant"
    " mount unmount"
    " install uninstall downgrade scale shut turn switch enable disable increase decrease raise lower put place write enter"
    " fill pass"
    " provide supply specify select choose pick decide contact inform notify warn ask schedule plan expect consult see=the"
    " note consider"
    " use keep leave repeat retry redo do go visit click press type paste register link connect download fetch pull push"
    " apply copy"
    " move remove delete drop set unset change replace rename edit adjust run execute create generate rotate back save"
    " export import"
    " migrate convert merge clear verify confirm test=whether mind remember take let have bring reserve assign define"
    " declare switch"
    " import drain pause resume scale=down scale=up reset renew revoke sync"
)
_VARIABLE = r"(?-i:\b[A-Z][A-Z0-9]*_[A-Z0-9_]+)"

#: What asks for manual work.
WORK = _words(
    r"\bmanual(?:ly)?\b|\bby hand\b|\bhands?-on\b",
    r"\bbreak(?:ing|s)\b",
    r"\bincompatib\w*|\b(?:not|no longer|isn't|aren't|non|un)[- ](?:\w{1,20} ){0,2}(?:(?:back|for|down)wards?[- ])?compatib\w*",
    rf"\b{_WHO}(?: \S{{1,20}}){{0,5}} {_DUTY}\b",
    r"\b(?:must|shall|(?:ha(?:ve|s)|needs?|ought) to)\b",
    rf"\b(?:should|may|might) (?:\w{{1,20}} ){{0,2}}be (?:\w{{1,20}}ly )?{_MADE}",
    rf"\b{_any('requires? required requiring requirements? mandatory obligatory compulsory necessary prerequisites?')}\b",
    rf"\b{_any('is are be gets? will=be actions? steps? changes? now')} needed\b|\bneeds?"
    rf" {_any('an? the new your more at=least')}\b",
    rf"\b{_any('before prior=to ahead=of in=advance=of')}\b.{{0,25}}\b{_UPGRADE}|\bbeforehand\b",
    rf"\b{_any('after once following post')}\b.{{0,25}}\b{_any('upgrad updat deploy redeploy migrat')}\w*",
    r"\babra app (?!upgrade\b|deploy\b|new\b)[a-z]\w*|\babra app (?:upgrade|deploy|new)\b.{0,60} --?[a-z]\w*",
    rf"\b(?:docker|podman) {_any('exec volume secret service config compose run network stack stop rm')}\b"
    rf"|\bocc [a-z]{{2,20}}\b|\b{_PROGRAM}\b|\balter table\b",
    r"\b(?:make|take|create|keep|have|do|perform|need)\b.{0,15}\b(?:back-?ups?|snapshots?|dump|copy of)\b",
    r"\b(?:back ?up|dump|snapshot|export|save|secure)\b (?:\w{1,15} )?(?:your|the|all|any|everything|first|before|it|them)\b",
    r"\bback-?ups?\b.{0,25}\b(?:first|recommended|advised|before|ready|at hand|strongly)\b",
    rf"\b(?<!\ba )(?<!the )re-?{_AGAIN}\b|\b{_any('rotate purge wipe truncate unset')}\b",
    rf"\b{_CHANGE}\b(?: \S{{1,30}}){{1,4}} {_THING}\b",
    rf"\b{_any('upgrade stop disable read')}\b.{{0,60}}\bfirst\b"
    rf"|\b{_CHANGE}\b.{{0,60}}\b{_any('first afterwards once again yourself')}\b",
    rf"\bmigrate {_any('to from your the all any data existing away over')}\b",
    rf"\b{_any('migration upgrad(?:e|ing) update transition')}"
    rf" {_any('guide notes? steps? script path procedure instructions? documentation docs tool needs')}\b",
    rf"\byour (?:\w{{1,20}} ){{0,2}}{_YOURS}\w*",
    r"(?<![\w.])\.env\b(?!\.sample)",
    rf"\b{_any('new additional another extra further more')} (?:\w{{1,20}}"
    rf" ){{0,2}}{_any('env environment variables? secrets? volumes?')}\b",
    rf"\b{_SETS}\b"
    rf".{{0,40}}{_VARIABLE}|\b{_any('replaced requires? expects? reads?')}\b.{{0,40}}{_VARIABLE}"
    rf"|(?-i:\b[A-Z][A-Z0-9_]{{2,40}}=)",
    r"\brenam(?:e|ed|es|ing)\b",
    rf"\b{_any('removed? removes removal=of drop(?:ped|s)? replaced? replaces moved split merged gone')}\b"
    rf"(?: \S{{1,30}}){{0,5}} (?:support|{_THING})\b",
    rf"\b{_THING}(?: \S{{1,30}}){{0,3}} (?:is|are|was|were|ha(?:s|ve) been) (?:now )?"
    rf"{_any('removed dropped gone replaced moved split merged changed different obsolete ignored')}\b",
    rf"\bno longer {_NO_MORE}\b",
    r"\b(?:make|be) sure\b|\bensure (?:that )?(?:you|your)\b|\b(?:forget|remember) to\b|\bbeware\b|\bbe (?:careful|aware"
    r"|prepared)\b",
    r"\b(?:attention|caution|heads[- ]?up|careful(?:ly)?)\b|\b(?:warning|important|notice|action)\s?[:!*\]]|⚠"
    r"|\bimportant(?:ly)?,",
    rf"\bfollow {_any('the these this those our its their')}\b|\binstructions?\b|\bread"
    rf" {_any('the this these on our their its more')}\b",
    rf"\b{_ONCE}"
    rf" (?:\w{{1,20}} )?{_any('steps? actions? work tasks? commands? interventions? attention care preparations?')}\b",
    r"\bplease\b",
    rf"\b(?:by|for) (?:the |an |every |all |each )?{_any('operators? sysadmins? administrators? admins?')}\b|\b(?:operators"
    rf"|sysadmins)\b",
    rf"\b{_LOSS}\b",
    r"\bdowngrad(?:e|ing|es)\b|\broll(?:ed|ing)? ?back\b|\bgo(?:ing)? back\b|\brevert(?:ed|ing)? to\b",
    r"\b(?:cannot|can't|can not|must not|may not|(?:not |im|only )possible to|only be) (?:be )?(?:\w{1,20}ly )?"
    r"(?:skip|upgrad|updat|jump|go\b|roll|undo|downgrad|start|read|use|deploy)\w*",
    rf"\bskip(?:ping)? (?:an? |any |this |that |over )?(?:\w{{1,20}} )?(?:versions?|releases?)\b"
    rf"|\b(?:do not|don't|never)"
    rf" {_any('skip upgrade update deploy run use jump start restart interrupt stop remove delete install')}\b",
    rf"\b{_any('may might can could will should')} (?:\w{{1,20}} )?{_any('take last run')} (?:\w{{1,20}} ){{0,3}}"
    rf"{_any('while time long longer minutes? hours? days?')}\b",
    r"\b(?:unless|until) (?:you|the|it|an?|its)\b|\b(?:unless|until) [A-Z]\w*",
    rf"\b(?:won't|will not|do(?:es)? not|do(?:es)?n't|refuses? to|fails? to) (?:start|boot|come up|work|run)\b.{{0,40}}"
    rf"\b{_any('without until unless if any~more')}\b",
    r"\bdefaults?\b.{0,40}\b(?:changed|changes|is now|are now|now|differs?|different)\b|\bnow\b.{0,40}\bby default\b"
    rf"|\bchang(?:e|es|ed|ing)\b.{{0,30}}\bdefaults?\b|\bnow"
    rf" {_any('disabled off opt-in denied refused rejected enforced forbidden')}\b",
    r"\b(?:minimum|minimal|oldest|lowest)\b.{0,20}\bversions?\b",
    rf"\b(?:at least|newer than|only {_any('with from on works supports?')}) (?:\S{{1,20}} ){{0,3}}v?\d",
    rf"\b{_STORE}\b.{{0,30}}(?:\bto\b|→|->|=>) ?(?:version |v)?\d{{1,4}}(?!\d|\.\d)",
    rf"\b{_STORE}\b.{{0,20}}\bmajor\b|\bmajor\b.{{0,30}}\b{_STORE}\b",
    r"\bpermissions?\b.{0,40}\b(?:chang|fix|chown|uid|own)\w*|\bch(?:own|mod|grp)\b|\bowned by\b|\b(?:uid|gid)s? \d",
    r"\b(?:log|sign)(?:ged|ed)? (?:in|out|back in)\b.{0,15}\b(?:again|once|anew|after)\b|\bnew (?:login|passwords?)\b",
    r"\b(?:before|after) (?:that|this|it|doing so)[,:]|\bbefore (?:you )?(?:upgrade|update|deploy|begin|start)\b"
    rf"|\bfirst {_any('of=all upgrade update stop run make take remove')}\b",
    rf"{_DOUBT}{_REST}\b(?P<doubt>{_DIFFERENT}\b|only(?=[.,;!?]|\Z))",
    rf"{_DOUBT}{_REST}\b(?P<doubt>{_OPERATORS})\b",
    rf"{_DOUBT}(?:then |so |also |and )?(?P<doubt>{_ORDER})\b",
    rf"{_BEGINS}(?:if|in case|whoever|where|for those|those|anyone|depending on)\b",
    r"\b\w{2,10}(?:\([^()]{1,40}\))?!:",
)

_NOTHING = _any(
    "breaking(?:=api|=config)?(?:=changes?)?"
    " (?:manual|human|user|operator|admin)(?:=(?:steps?|work|interventions?|actions?|changes?|migrations?|tasks?|effort|input"
    "|upgrade=steps?|attention))?"
    " (?:(?:database|data|schema|config(?:uration)?)=)?migrations?(?:=steps?)? actions? interventions?"
    " (?:(?:config(?:uration)?|schema|database|api)=)?changes? (?:(?:upgrade|migration)=)?steps? work(?:=by=hand)?"
    " (?:re)?configuration downtime outages? data=loss loss=of=data re~starts? re~build re~index(?:ing)? back~ups? "
    " deprecations? incompatibilit(?:y|ies) special=care attention preparations? requirements? prerequisites?"
    " (?:(?:environment=)?variables?) secrets? settings volumes? impact hands"
)
_SUCH = _any(
    "further known notable major significant visible additional other special extra more new such specific particular required"
    " any need(?:ed)?=(?:for|of)"
)
_MORE = rf"(?:{_SUCH} ){{0,3}}"
_FOR = (
    r"(?: (?:by hand|from you|on your (?:part|side|end)|(?:by|for) (?:the )?(?:operators?|admins?|you)|in this (?:release"
    r"|version)|at all|here|this time|whatsoever|manually))?"
)
#: Continuations that take it back.
_OPEN = (
    r"(?!\W{0,3}\b(?:except|excepting|unless|other than|apart from|aside from|but for|beyond|besides|if|when|for those|as"
    r" long as"
    r"|provided|save|for most)\b)"
)
_CLAUSE = r"(?:[^.;:,!?()\n]|\.(?=\w)){0,80}?(?=[;:,!?()\n]|\.(?!\w)| but | however | unless | except | if |\Z)"
_NEEDED = _any("required needed necessary")

#: Phrases that say there is nothing to do, up to the end of the phrase.
HARMLESS = _words(
    rf"\bno (?:(?:config(?:uration)? |database )?changes?|work|steps?|action) (?:to|of|in|on|for|with) (?:the |your |any"
    rf" )?\w{{1,20}}"
    rf"(?: (?:is|are) {_NEEDED})?{_OPEN}",
    r"\b(?:up(?:grading|dating)|the up(?:grade|date)) (?:is|should be) (?:safe|easy|straightforward|painless|smooth|seamless"
    r"|uneventful)\b",
    rf"\b(?:no|zero|without|(?:not|aren't|isn't|wasn't) (?:have |need |contain |include |introduce |bring )?any|nor|neither)"
    rf" {_MORE}{_NOTHING}\b"
    rf"(?:(?:,| or| and| nor|, or|, and)(?: any| no)? {_MORE}{_NOTHING}\b){{0,3}}{_FOR}(?: (?:is|are|was|were|will be|should"
    rf" be))?"
    rf"(?: (?:expected|known|planned|involved))?(?: (?:{_NEEDED}|to (?:do|make|take|run|report)))?{_FOR}{_OPEN}",
    rf"\bno need (?:to|for)\b{_CLAUSE}",
    rf"\b(?:do|does|did) (?:not|n't) (?:require|need|involve)\b{_CLAUSE}|\b(?:does|do)n't (?:require|need|involve)\b{_CLAUSE}",
    rf"\bnothing (?:that )?{_WHO} (?:needs?|ha(?:ve|s)|must|should)\b{_CLAUSE}|\b{_WHO} need not\b{_CLAUSE}",
    r"\b(?:(?:database|schema|data) )?(?:migrations?|schema|data|tables|settings|index(?:es)?|it|this|they|everything"
    r"|all)(?: \w{1,20}){0,3}"
    r" automatically(?: (?:at|on|during) (?:the )?(?:first )?(?:start|boot|start-?up|deploy|upgrade))?\b",
    r"(?<!not )(?<!longer )(?<!n't )(?<!non-)(?<!ly )\b(?:back|for|down)wards?[- ]compatible\b|\A(?:fully|entirely)"
    r" \w{7,9}[- ]compatible\b",
    rf"\bnothing (?:else |more |further )?(?:to (?:do|be done|migrate|change)|(?:needs|has|is) to be \w{{1,20}}|needs"
    rf" \w{{1,20}}ing"
    rf"|is (?:{_NEEDED}|broken|removed)|breaks|breaking|changes|must be \w{{1,20}}){_FOR}{_OPEN}",
    rf"\b(?:{_WHO} )?(?:(?:do|does|did|will) not|don't|doesn't|won't|no longer) (?:have|has|needs?) to\b{_CLAUSE}",
    rf"\bno longer (?:requires?|needs?)\b{_CLAUSE}|\bno longer (?:\w{{1,20}} )?(?:{_NEEDED}|mandatory|manual(?:ly)?)",
    rf"\b(?:is|are|was|were|be) (?:not|never) (?:\w{{1,20}} )?(?:{_NEEDED}|mandatory|breaking|affected)\b{_OPEN}",
    rf"\b(?:isn't|aren't|not) (?:an? )?(?:{_NEEDED}|mandatory|breaking)(?: changes?)?\b{_OPEN}",
    rf"\b{_NOTHING}(?: {_NEEDED})? ?[:=–—-] ?(?:none|nothing|no\b(?! \w)|n/a)(?: (?:known|so far|{_NEEDED}))?{_OPEN}",
    r"\bnon-breaking(?: (?:changes?|updates?|releases?))?\b|\b(?:line|word)[- ]breaking\b|\bbreaking news\b",
    r"\bshould (?:now )?be (?:(?:much|a lot|a bit|slightly|more|far|way) )?"
    rf"{_any('fast faster quicker fixed better smoother able stable reliable readable')}\b",
    r"\bplease (?:report|open|file|let us|tell|give feedback|try|enjoy|say)\b",
    r"\b(?:user|admin|online|reference|the|our|its) manuals?(?=[.,;:)]|\Z| (?:page|is|are|has|have|was|now|describes"
    r"|explains|covers|moved|of)\b)",
    r"\bback-?ups? (?:are|is) (?:now )?(?:faster|smaller|made|taken|kept|stored|compressed)\b",
)


@dataclass(frozen=True)
class Passage:
    """A line of release notes that asks for manual work, and the position of the matching words."""

    line: int
    text: str
    start: int
    end: int


def manual_passages(notes: str, patterns: Sequence[str], harmless: Sequence[str]) -> tuple[Passage, ...]:
    """The lines in which a pattern matches outside of what `harmless` matches; each with its first match."""
    searched = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    blanked = [re.compile(pattern, re.IGNORECASE) for pattern in harmless]
    passages: list[Passage] = []
    for lines in _paragraphs(notes):
        text = " ".join(line for _, line in lines)
        hits = sorted(_hits(text, searched, blanked))
        at = 0
        for number, line in lines:
            start, end = next(((a - at, b - at) for _, a, b in hits if at <= a < at + len(line)), (0, 0))
            if end:
                first = max(0, start - 150)
                shown = line[first : first + 400]
                passages.append(Passage(number, shown, start - first, min(end - first, len(shown))))
            at += len(line) + 1
        if len(passages) >= _MOST_PASSAGES:
            break
    return tuple(passages[:_MOST_PASSAGES])


def _hits(text: str, searched: Sequence[re.Pattern[str]], blanked: Sequence[re.Pattern[str]]) -> Iterator[tuple[bool, int, int]]:
    """Position of a match, and whether it is doubtful (group `doubt`); a certain one is preferred."""
    for at in range(0, max(len(text) - _OVERLAP, 1), _WINDOW - _OVERLAP):
        window = text[at : at + _WINDOW]
        for pattern in blanked:
            window = pattern.sub(lambda found: "\0" * len(found[0]), window)
        for pattern in searched:
            doubt = "doubt" in pattern.groupindex
            for found in pattern.finditer(window):
                start, end = found.span("doubt" if doubt else 0)
                if start < end:
                    yield doubt, at + start, at + end


def _paragraphs(notes: str) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines that belong together."""
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(notes.splitlines(), 1):
        text = line.strip()
        if lines and (not text or _ITEM.match(line)):
            yield lines
            lines = []
        if text:
            lines.append((number, text))
    if lines:
        yield lines
