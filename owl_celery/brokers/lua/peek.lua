-- Look at waiting messages, oldest first.
-- KEYS: list. ARGV: messages to pass over, most messages to look at.
-- Returns task id, header "owl" as JSON; task id, ...; both empty where there is none. Bodies stay
-- here, since they may be large.
local function owl_header(headers)
  if type(headers.owl) == 'table' then
    return headers.owl
  end
  return type(headers.headers) == 'table' and headers.headers.owl
end

local skipped = tonumber(ARGV[1])
local messages = redis.call('LRANGE', KEYS[1], -skipped - tonumber(ARGV[2]), -skipped - 1)
local found = {}
for at = #messages, 1, -1 do
  local id, header = '', ''
  local is_sound, decoded = pcall(cjson.decode, messages[at])
  local headers = is_sound and type(decoded) == 'table' and decoded.headers
  if type(headers) == 'table' and type(headers.id) == 'string' then
    local owl = owl_header(headers)
    local is_text, text = pcall(cjson.encode, owl)
    if type(owl) == 'table' and is_text then
      id, header = headers.id, text
    end
  end
  found[#found + 1] = id
  found[#found + 1] = header
end
return found
